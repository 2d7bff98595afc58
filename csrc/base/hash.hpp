// Hashing of 64-bit words and insert-only hash maps on them, for the tables of a vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
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

// Open addressing with linear probing, at most half full. Most keys asked for are absent: a small
// table of bits, which stays in the nearest caches, answers nearly all of those. The key ~0 is
// reserved.
template <typename Value>
class WordMap {
 public:
  WordMap() { reset(16); }

  // Keeps the first value where the key is already there.
  void insert(std::uint64_t key, Value value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    if (place(key, value)) ++size_;
  }

  // nullptr where the key is absent.
  const Value* find(std::uint64_t key) const {
    const std::uint64_t hash = hash_word(key);
    if ((filter_[filter_index(hash) / 64] >> filter_index(hash) % 64 & 1) == 0) return nullptr;
    const Slot& slot = slots_[index_of(key, hash)];
    return slot.key == key ? &slot.value : nullptr;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  static constexpr std::size_t kFilterBits = 4;  // a slot, so at least 8 a key

  struct Slot {
    std::uint64_t key = kEmpty;
    Value value{};
  };

  void reset(std::size_t slots) {
    slots_.assign(slots, Slot{});
    filter_.assign(slots * kFilterBits / 64, 0);
  }

  // The slot comes from the low bits of the hash, the bit of the filter from the high ones.
  std::size_t filter_index(std::uint64_t hash) const {
    return (hash >> 32) & (slots_.size() * kFilterBits - 1);
  }

  std::size_t index_of(std::uint64_t key, std::uint64_t hash) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t index = hash & mask;
    while (slots_[index].key != key && slots_[index].key != kEmpty) index = (index + 1) & mask;
    return index;
  }

  bool place(std::uint64_t key, Value value) {
    const std::uint64_t hash = hash_word(key);
    Slot& slot = slots_[index_of(key, hash)];
    if (slot.key == key) return false;
    slot = {key, value};
    filter_[filter_index(hash) / 64] |= std::uint64_t{1} << filter_index(hash) % 64;
    return true;
  }

  void grow() {
    const std::vector<Slot> old = std::move(slots_);
    reset(2 * old.size());
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) place(slot.key, slot.value);
    }
  }

  std::vector<Slot> slots_;
  std::vector<std::uint64_t> filter_;
  std::size_t size_ = 0;
};

}  // namespace vikhr
