// MinHash signatures of shingle sets, and the keys of their LSH bands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/cpu.hpp"

namespace vikhr {

struct MinHashSettings {
  std::uint32_t num_perm;
  std::uint32_t bands;  // divides num_perm
  std::uint64_t seed;
};

inline constexpr std::uint32_t kMaxPermutations = 1 << 12;

// value i of a signature is the least (a_i * x + b_i) mod 2^32 over the set, x being the upper
// half of a shingle's hash and a_i odd: a permutation of the 32-bit numbers.
class MinHash {
 public:
  // std::invalid_argument on settings that make no signature, or an instruction set that this
  // machine does not have.
  MinHash(const MinHashSettings& settings, Isa isa);

  const MinHashSettings& settings() const { return settings_; }
  std::uint32_t rows() const { return settings_.num_perm / settings_.bands; }
  // Numbers in the work space that `sign` needs: num_perm, rounded up.
  std::size_t padded() const { return multipliers_.size(); }

  // Writes padded() values, of which the first num_perm are the signature.
  void sign(const std::uint64_t* shingles, std::size_t count, std::uint32_t* signature) const;

  // Writes one key a band; sets share a band when they have an equal key in the same place.
  void band_keys(const std::uint32_t* signature, std::uint32_t* keys) const;

 private:
  MinHashSettings settings_;
  Isa isa_;
  std::vector<std::uint32_t> multipliers_;
  std::vector<std::uint32_t> offsets_;
  std::vector<std::uint64_t> key_factors_;  // of the rows of a band
};

}  // namespace vikhr
