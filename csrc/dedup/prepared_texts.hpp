// Texts as what a DedupIndex compares: their shingles, and the keys of these.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/huge_memory.hpp"
#include "dedup/minhash.hpp"
#include "dedup/set_storage.hpp"
#include "dedup/shingles.hpp"
#include "text/texts.hpp"
#include "base/threads.hpp"

namespace vikhr {

struct PreparedTexts {
  PreparedTexts(std::size_t texts, std::size_t bands)
      : shingles(texts), is_short(texts), keys(texts * (1 + bands)) {}

  std::size_t size() const { return shingles.size(); }
  const std::uint32_t* column(std::size_t table) const { return keys.data() + table * size(); }

  HugeVector<StoredShingles> shingles;
  std::vector<std::uint8_t> is_short;  // whether the text is shorter than a shingle
  HugeVector<std::uint32_t> keys;      // [1 + bands, texts]: of the whole sets, then of each band
};

// One thread's work space.
class Preparer {
 public:
  Preparer(ShingleKind shingle, const MinHash& minhash, Isa isa)
      : minhash_(minhash),
        shingler_(shingle, isa),
        signature_(minhash.padded()),
        band_keys_(minhash.settings().bands) {}

  // Text `i` of `out`, whose shingles go to `storage` as they are read.
  void prepare(const Text& text, std::size_t document, InvalidUtf8 policy, SetStorage& storage,
               PreparedTexts& out, std::size_t i);

  // The keys of out.shingles[i]; those of a set don't depend on how it is stored.
  void make_keys(PreparedTexts& out, std::size_t i);

 private:
  const MinHash& minhash_;
  Shingler shingler_;
  std::vector<std::uint64_t> shingles_;
  std::vector<std::uint32_t> signature_;
  std::vector<std::uint32_t> band_keys_;
};

// Makes sets of shingles(i), a StoredShingles* or nullptr, for i from 0 to count.
template <typename Shingles>
void make_sets(std::size_t count, unsigned threads, const Shingles& shingles) {
  constexpr std::size_t kBlock = 1 << 10;
  run_blocks((count + kBlock - 1) / kBlock, threads, [&]() {
    return [&, maker = SetMaker()](std::size_t block) mutable {
      for (std::size_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); ++i) {
        StoredShingles* const one = shingles(i);
        if (one == nullptr || one->is_set) continue;
        one->size = static_cast<std::uint32_t>(maker.make_set(one->values, one->size));
        one->is_set = true;
      }
    };
  });
}

}  // namespace vikhr
