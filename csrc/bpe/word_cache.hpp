// A bounded memory of encoded words, shared by all threads: a set-associative table of whole cache lines. Only a memory:
// what it forgets is merged again, and ids never depend on what it holds.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

#include "base/hash.hpp"
#include "base/huge_memory.hpp"

namespace vikhr {

// An entry has a half for the word and one for its ids, of `kHalf` times eight bytes each.
template <std::size_t kHalf>
class WordCache {
 public:
  static constexpr std::size_t kMaxWord = 8 * kHalf - 1;  // bytes
  static constexpr std::size_t kMaxIds = 2 * kHalf - 1;
  static constexpr std::size_t kMore = kMaxIds + 1;  // an entry's count; the largest entries have no room for it

  using Key = std::array<std::uint64_t, kHalf>;  // the word, padded with zeros, its length in the last byte

  // Zeroed memory from the system, of which only touched pages exist, huge ones where there are.
  WordCache() : memory_(std::calloc(kBytes + kHugePage, 1)) {
    if (memory_ == nullptr) throw std::bad_alloc();
    void* aligned = memory_.get();
    std::size_t space = kBytes + kHugePage;
    std::align(kHugePage, kBytes, aligned, space);
    advise_huge_pages(aligned, kBytes);
    entries_ = static_cast<Entry*>(aligned);
  }

  // The key of a word of 1 to kMaxWord bytes; `readable` bytes may be read from its start. Written in whole words of
  // eight bytes, as it is read: others would wait for the memory.
  static void make_key(std::string_view word, std::size_t readable, Key& key) {
    const std::uint64_t length = static_cast<std::uint64_t>(word.size()) << 56;
    if (readable >= sizeof(Key)) {
      const unsigned char* mask = kMask.data() + sizeof(Key) - word.size();
      for (std::size_t i = 0; i < key.size(); ++i) {
        key[i] = (load(word.data() + 8 * i) & load(mask + 8 * i)) | (i + 1 == kHalf ? length : 0);
      }
    } else {
      key = {};
      std::memcpy(key.data(), word.data(), word.size());
      key[kHalf - 1] |= length;
    }
  }

  // The word of a key.
  static std::string_view word_of(const Key& key) {
    return {reinterpret_cast<const char*>(key.data()), static_cast<std::size_t>(key[kHalf - 1] >> 56)};
  }

  static std::size_t index_of(const Key& key) {
    std::uint64_t hash = mix(key[0] ^ 0xA0761D6478BD642Fu, key[1] ^ 0xE7037ED1A0B428DBu);
    if constexpr (kHalf > 2) hash ^= mix(key[2] ^ 0x8EBC6AF09C88C6E3u, key[3] ^ 0x589965CC75374CC3u);
    for (std::size_t i = 4; i < kHalf; i += 2) hash = mix(hash ^ key[i], key[i + 1] ^ 0xE7037ED1A0B428DBu);
    return mix(hash, 0x9E3779B97F4A7C15u) & (kEntries - 1);
  }

  void prefetch(std::size_t index) const {
    __builtin_prefetch(entries_ + index);
    if (sizeof(Entry) >= 64) __builtin_prefetch(entries_ + (index ^ 1));
  }

  // Writes the word's ids to `ids`, which has kMaxIds + 1 places, and returns how many there are: 0 where the word is
  // not known, kMore where it was inserted as one that has more.
  std::size_t find(const Key& key, std::size_t index, std::int32_t* ids) {
    if (const std::size_t count = entries_[index].read(key, ids)) return count;
    return entries_[index ^ 1].read(key, ids);
  }

  // Keeps 1 to kMaxIds ids, or of kMore that there are so many, in the place of its set that is empty, or else was not
  // found since it came.
  void insert(const Key& key, std::size_t index, const std::int32_t* ids, std::size_t count) {
    Entry& first = entries_[index];
    Entry& second = entries_[index ^ 1];
    Entry& victim = second.worth() < first.worth() ? second : first;
    if (victim.worth() == Entry::kMostWorth) second.forget_use();
    victim.write(key, ids, count);
  }

 private:
  static constexpr std::size_t kEntries = std::size_t{1} << (kHalf == 2 ? 19 : kHalf == 4 ? 18 : 16);

  // Threads read while one writes: a reader compares the state before and after. Every access is atomic; acquire
  // loads and release stores keep them in order, and cost nothing on x86.
  //
  // The state, in the upper half of the last word, beside an id: bits 0-3 the count, 4 found since it came, 5 being
  // written, the rest a version.
  class alignas(16 * kHalf < 64 ? 16 * kHalf : 64) Entry {
   public:
    std::size_t read(const Key& key, std::int32_t* ids) {
      const std::uint64_t last = words_[kLast].load(std::memory_order_acquire);
      if ((last & kWriting) != 0 || !is_same(key)) return 0;
      for (std::size_t i = 0; i < kHalf; ++i) {
        const std::uint64_t pair = i + 1 < kHalf ? words_[kHalf + i].load(std::memory_order_acquire) : last;
        std::memcpy(ids + 2 * i, &pair, sizeof pair);
      }
      const std::uint64_t after = words_[kLast].load(std::memory_order_relaxed);
      if (((last ^ after) & ~kUsed) != 0) return 0;
      if ((last & kUsed) == 0) {
        std::uint64_t expected = last;
        words_[kLast].compare_exchange_strong(expected, last | kUsed, std::memory_order_relaxed);
      }
      return static_cast<std::size_t>(last >> kStateShift & 15);
    }

    void write(const Key& key, const std::int32_t* ids, std::size_t count) {
      std::uint64_t last = words_[kLast].load(std::memory_order_relaxed);
      if ((last & kWriting) != 0) return;  // it is only a memory
      if (!words_[kLast].compare_exchange_strong(last, last | kWriting, std::memory_order_acq_rel)) return;
      std::array<std::uint64_t, kHalf> values{};
      if (count <= kMaxIds) std::memcpy(values.data(), ids, count * sizeof *ids);
      for (std::size_t i = 0; i < kHalf; ++i) words_[i].store(key[i], std::memory_order_release);
      for (std::size_t i = 0; i + 1 < kHalf; ++i) words_[kHalf + i].store(values[i], std::memory_order_release);
      const std::uint64_t version = (last >> kVersionShift) + 1;
      words_[kLast].store(version << kVersionShift | std::uint64_t{count} << kStateShift | values[kHalf - 1],
                          std::memory_order_release);
    }

    static constexpr int kMostWorth = 2;
    int worth() const {
      const std::uint64_t last = words_[kLast].load(std::memory_order_relaxed);
      return (last & kUsed) != 0 ? kMostWorth : last != 0 ? 1 : 0;
    }
    void forget_use() { words_[kLast].fetch_and(~kUsed, std::memory_order_relaxed); }

   private:
    static constexpr unsigned kStateShift = 32;
    static constexpr unsigned kVersionShift = 38;
    static constexpr std::uint64_t kUsed = std::uint64_t{1} << 36;
    static constexpr std::uint64_t kWriting = std::uint64_t{1} << 37;
    static constexpr std::size_t kLast = 2 * kHalf - 1;

    bool is_same(const Key& key) const {
      std::uint64_t differs = 0;
      for (std::size_t i = 0; i < kHalf; ++i) {
        differs |= key[i] ^ words_[i].load(std::memory_order_acquire);
      }
      return differs == 0;
    }

    std::array<std::atomic<std::uint64_t>, 2 * kHalf> words_;  // the key, the ids and the state
  };
  static_assert(sizeof(Entry) == 16 * kHalf && (2 * sizeof(Entry)) % 64 == 0, "a set is whole cache lines");
  static constexpr std::size_t kBytes = kEntries * sizeof(Entry);

  // From its place 8 * kHalf - n on, all bits of n bytes and none of the others.
  static constexpr std::array<unsigned char, 16 * kHalf> kMask = [] {
    std::array<unsigned char, 16 * kHalf> mask{};
    for (std::size_t i = 0; i < 8 * kHalf; ++i) mask[i] = 0xFF;
    return mask;
  }();

  static std::uint64_t load(const void* bytes) {
    std::uint64_t value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  Entry* entries_ = nullptr;
};

using ShortWordCache = WordCache<4>;  // 16 MiB

}  // namespace vikhr
