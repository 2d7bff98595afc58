// Shingle sets, signatures and band keys of texts, on any number of threads.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "dedup/minhash.hpp"
#include "dedup/shingles.hpp"
#include "text/texts.hpp"

namespace vikhr {

struct ShingleSets {
  std::vector<std::uint64_t> values;  // ascending in each set
  std::vector<std::int64_t> offsets;  // [texts + 1]
  std::vector<std::uint8_t> is_short;  // [texts] whether the text is shorter than a shingle
};

class MinHasher {
 public:
  MinHasher(ShingleKind shingle, const MinHashSettings& settings, Isa isa);

  const MinHash& minhash() const { return minhash_; }

  ShingleSets sets(const Texts& texts, InvalidUtf8 policy, unsigned threads) const;
  // Writes [texts, num_perm].
  void signatures(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                  std::uint32_t* signatures) const;
  // Writes [sets, bands].
  void band_keys(const std::uint64_t* values, const std::int64_t* offsets, std::size_t sets,
                 unsigned threads, std::uint32_t* keys) const;

 private:
  ShingleKind shingle_;
  MinHash minhash_;
  Isa isa_;
};

}  // namespace vikhr
