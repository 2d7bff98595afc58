// Hashing of 64-bit words and an insert-only hash map on them, for the tables of a vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vikhr {

// The two halves of the 128-bit product, xored: every input bit reaches every output bit.
inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

inline std::uint64_t hash_word(std::uint64_t key) {
  return mix(key ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u);
}

// Open addressing with linear probing, at most half full. The key ~0 is reserved.
template <typename Value>
class WordMap {
 public:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};

  explicit WordMap(std::size_t expected = 0) {
    std::size_t slots = 16;
    while (slots < 2 * expected) slots *= 2;
    slots_.resize(slots);
  }

  // Keeps the first value where the key is already there.
  void insert(std::uint64_t key, Value value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    Slot& slot = slots_[index_of(key)];
    if (slot.key == key) return;
    slot = {key, value};
    ++size_;
  }

  // nullptr where the key is absent.
  const Value* find(std::uint64_t key) const {
    const Slot& slot = slots_[index_of(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

 private:
  struct Slot {
    std::uint64_t key = kEmpty;
    Value value{};
  };

  std::size_t index_of(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t index = hash_word(key) & mask;
    while (slots_[index].key != key && slots_[index].key != kEmpty) index = (index + 1) & mask;
    return index;
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) slots_[index_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
};

}  // namespace vikhr
