// A multimap from 32-bit keys to numbers, eight bytes a slot: one band of an LSH index.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/huge_memory.hpp"

namespace vikhr {

// Open addressing. A slot's place is the key's share of the table, so that growing is one pass
// from the old table to the new, both in order, and whoever comes with keys in their order goes
// through memory in order, too.
class BandTable {
 public:
  void prefetch(std::uint32_t key) const {
    if (!slots_.empty()) __builtin_prefetch(&slots_[place(key)]);
  }

  // Makes room for `more` numbers.
  void reserve(std::size_t more) {
    const std::size_t needed = 3 * (size_ + more) / 2 + 1;
    if (needed > slots_.size()) grow(std::max({needed, slots_.size() * 3 / 2, std::size_t{64}}));
  }

  // Calls visit(number) for every number under the key until it returns false.
  template <typename Visit>
  void find(std::uint32_t key, const Visit& visit) const {
    if (slots_.empty()) return;
    for (std::size_t i = place(key); slots_[i].number != kNone; i = next(i)) {
      if (slots_[i].key == key && !visit(slots_[i].number)) return;
    }
  }

  bool contains(std::uint32_t key) const {
    bool found = false;
    find(key, [&](std::uint32_t) {
      found = true;
      return false;
    });
    return found;
  }

  // There must be room; `number` is below kNone.
  void insert(std::uint32_t key, std::uint32_t number) {
    put({key, number});
    ++size_;
  }

  std::size_t bytes() const { return slots_.capacity() * sizeof(Slot); }

  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

 private:
  struct Slot {
    std::uint32_t key = 0;
    std::uint32_t number = kNone;
  };

  std::size_t place(std::uint32_t key) const {
    __extension__ using Wide = unsigned __int128;  // there may be more than 2^32 slots
    return static_cast<std::size_t>(Wide{key} * slots_.size() >> 32);
  }
  std::size_t next(std::size_t i) const { return i + 1 == slots_.size() ? 0 : i + 1; }

  void put(Slot slot) {
    std::size_t i = place(slot.key);
    while (slots_[i].number != kNone) i = next(i);
    slots_[i] = slot;
  }

  void grow(std::size_t slots) {
    HugeVector<Slot> old(HugeAllocator<Slot>::fill(slots));
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.number != kNone) put(slot);
    }
  }

  HugeVector<Slot> slots_;
  std::size_t size_ = 0;
};

}  // namespace vikhr
