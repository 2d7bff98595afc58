// A multimap from 32-bit keys to numbers, eight bytes a slot: one band of an LSH index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "huge_memory.hpp"

namespace vikhr {

// Open addressing. A slot's place is the key's share of the table, so that growing is one pass
// from the old table to the new, both in order.
class BandTable {
 public:
  void prefetch(std::uint32_t key) const {
    if (!slots_.empty()) __builtin_prefetch(&slots_[place(key)]);
  }

  // Makes room for one number more. Places from before are worth nothing then.
  void reserve() {
    if (3 * (size_ + 1) > 2 * slots_.size()) grow();
  }

  // Calls visit(number) for every number under the key. Returns the place for another one, if
  // `reserve` was called before.
  template <typename Visit>
  std::size_t find(std::uint32_t key, const Visit& visit) const {
    if (slots_.empty()) return 0;
    std::size_t i = place(key);
    for (; slots_[i].number != kNone; i = next(i)) {
      if (slots_[i].key == key) visit(slots_[i].number);
    }
    return i;
  }

  // `place` is what `find` returned for the key last; `number` is below kNone.
  void insert(std::size_t place, std::uint32_t key, std::uint32_t number) {
    slots_[place] = {key, number};
    ++size_;
  }

  std::size_t bytes() const { return slots_.capacity() * sizeof(Slot); }

  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

 private:
  struct Slot {
    std::uint32_t key = 0;
    std::uint32_t number = kNone;
  };

  using Slots = std::vector<Slot, HugeAllocator<Slot>>;

  std::size_t place(std::uint32_t key) const {
    return static_cast<std::size_t>(std::uint64_t{key} * slots_.size() >> 32);
  }
  std::size_t next(std::size_t i) const { return i + 1 == slots_.size() ? 0 : i + 1; }

  void put(Slot slot) {
    std::size_t i = place(slot.key);
    while (slots_[i].number != kNone) i = next(i);
    slots_[i] = slot;
  }

  void grow() {
    using Memory = HugeAllocator<Slot>;
    Slots old(slots_.empty() ? 64 : Memory::fill(slots_.size() + slots_.size() / 2));
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.number != kNone) put(slot);
    }
  }

  Slots slots_;
  std::size_t size_ = 0;
};

}  // namespace vikhr
