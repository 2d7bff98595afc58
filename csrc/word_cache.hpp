// A bounded memory of encoded words: a set-associative table of one cache line a word. Only a
// memory: what it forgets is merged again, and ids never depend on what it holds.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

#include "hash.hpp"

namespace vikhr {

class WordCache {
 public:
  static constexpr std::size_t kMaxWord = 31;  // bytes
  static constexpr std::size_t kMaxIds = 7;

  struct alignas(64) Entry {
    std::array<std::uint64_t, 4> key;  // the word, padded with zeros, its length in the last byte
    std::array<std::int32_t, kMaxIds> ids;
    std::uint32_t count;
  };
  static_assert(sizeof(Entry) == 64, "one cache line");

  using Key = std::array<std::uint64_t, 4>;

  // Zeroed memory from the system, of which only touched pages exist: a small use stays small.
  WordCache() : memory_(std::calloc(kEntries + 1, sizeof(Entry))) {
    if (memory_ == nullptr) throw std::bad_alloc();
    void* aligned = memory_.get();
    std::size_t space = (kEntries + 1) * sizeof(Entry);
    std::align(alignof(Entry), kEntries * sizeof(Entry), aligned, space);
    entries_ = static_cast<Entry*>(aligned);
  }

  // `word` has 1 to kMaxWord bytes; `readable` bytes may be read from its start.
  static Key make_key(std::string_view word, std::size_t readable) {
    Key key{};
    if (readable >= sizeof(Key)) {
      std::memcpy(key.data(), word.data(), sizeof(Key));
      for (std::size_t i = 0; i < key.size(); ++i) key[i] &= byte_mask(word.size(), 8 * i);
    } else {
      std::memcpy(key.data(), word.data(), word.size());
    }
    key[3] |= static_cast<std::uint64_t>(word.size()) << 56;
    return key;
  }

  static std::size_t index_of(const Key& key) {
    const std::uint64_t hash = mix(key[0] ^ 0xA0761D6478BD642Fu, key[1] ^ 0xE7037ED1A0B428DBu) ^
                               mix(key[2] ^ 0x8EBC6AF09C88C6E3u, key[3] ^ 0x589965CC75374CC3u);
    return mix(hash, 0x9E3779B97F4A7C15u) & (kEntries - 1);
  }

  void prefetch(std::size_t index) const { __builtin_prefetch(entries_ + index); }

  // nullptr where the word is not known.
  const Entry* find(const Key& key, std::size_t index) const {
    const Entry* first = entries_ + index;
    if (is_same(first->key, key)) return first;
    const Entry* second = entries_ + (index ^ 1);
    return is_same(second->key, key) ? second : nullptr;
  }

  // The newest word takes the first place of its set, the one before it moves to the second.
  void insert(const Key& key, std::size_t index, const std::int32_t* ids, std::size_t count) {
    Entry& first = entries_[index];
    entries_[index ^ 1] = first;
    first.key = key;
    first.count = static_cast<std::uint32_t>(count);
    std::memcpy(first.ids.data(), ids, count * sizeof *ids);
  }

 private:
  static constexpr std::size_t kEntries = std::size_t{1} << 18;  // 16 MiB

  // In registers; operator== would call memcmp.
  static bool is_same(const Key& a, const Key& b) {
    return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0;
  }

  // The bytes of the 8 at `offset` that belong to a word of `length` bytes (little-endian).
  static std::uint64_t byte_mask(std::size_t length, std::size_t offset) {
    if (length >= offset + 8) return ~std::uint64_t{0};
    if (length <= offset) return 0;
    return (std::uint64_t{1} << 8 * (length - offset)) - 1;
  }

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  Entry* entries_ = nullptr;
};

}  // namespace vikhr
