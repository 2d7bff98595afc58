#include "dedup/minhash.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "base/hash.hpp"

#ifdef VIKHR_X86
#include <immintrin.h>
#endif

namespace vikhr {
namespace {

constexpr std::size_t kLanes = 128;  // permutations done together: eight AVX-512 registers

// Each lowers minima[i] to the least multipliers[i] * x + offsets[i] over the upper halves x of
// the shingles, for kLanes values of i.
using Kernel = void (*)(const std::uint64_t* shingles, std::size_t count,
                        const std::uint32_t* multipliers, const std::uint32_t* offsets,
                        std::uint32_t* minima);

void sign_scalar(const std::uint64_t* shingles, std::size_t count,
                 const std::uint32_t* multipliers, const std::uint32_t* offsets,
                 std::uint32_t* minima) {
  for (std::size_t s = 0; s < count; ++s) {
    const auto x = static_cast<std::uint32_t>(shingles[s] >> 32);
    for (std::size_t i = 0; i < kLanes; ++i) {
      minima[i] = std::min(minima[i], multipliers[i] * x + offsets[i]);
    }
  }
}

#ifdef VIKHR_X86

__attribute__((target("avx2"))) void sign_avx2(const std::uint64_t* shingles, std::size_t count,
                                               const std::uint32_t* multipliers,
                                               const std::uint32_t* offsets,
                                               std::uint32_t* minima) {
  constexpr std::size_t kWidth = 8;
  constexpr std::size_t kTogether = 4;  // registers for multipliers, offsets and minima
  for (std::size_t lane = 0; lane < kLanes; lane += kWidth * kTogether) {
    __m256i a[kTogether], b[kTogether], least[kTogether];
    for (std::size_t i = 0; i < kTogether; ++i) {
      const std::size_t at = lane + i * kWidth;
      a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(multipliers + at));
      b[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets + at));
      least[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(minima + at));
    }
    for (std::size_t s = 0; s < count; ++s) {
      const __m256i x = _mm256_set1_epi32(static_cast<int>(shingles[s] >> 32));
      for (std::size_t i = 0; i < kTogether; ++i) {
        const __m256i value = _mm256_add_epi32(_mm256_mullo_epi32(a[i], x), b[i]);
        least[i] = _mm256_min_epu32(least[i], value);
      }
    }
    for (std::size_t i = 0; i < kTogether; ++i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(minima + lane + i * kWidth), least[i]);
    }
  }
}

__attribute__((target("avx512f"))) void sign_avx512(const std::uint64_t* shingles,
                                                    std::size_t count,
                                                    const std::uint32_t* multipliers,
                                                    const std::uint32_t* offsets,
                                                    std::uint32_t* minima) {
  constexpr std::size_t kWidth = 16;
  constexpr std::size_t kTogether = kLanes / kWidth;
  __m512i a[kTogether], b[kTogether], least[kTogether];
  for (std::size_t i = 0; i < kTogether; ++i) {
    a[i] = _mm512_loadu_si512(multipliers + i * kWidth);
    b[i] = _mm512_loadu_si512(offsets + i * kWidth);
    least[i] = _mm512_loadu_si512(minima + i * kWidth);
  }
  for (std::size_t s = 0; s < count; ++s) {
    const __m512i x = _mm512_set1_epi32(static_cast<int>(shingles[s] >> 32));
    for (std::size_t i = 0; i < kTogether; ++i) {
      const __m512i value = _mm512_add_epi32(_mm512_mullo_epi32(a[i], x), b[i]);
      least[i] = _mm512_maskz_min_epu32(0xFFFF, least[i], value);
    }
  }
  for (std::size_t i = 0; i < kTogether; ++i) {
    _mm512_storeu_si512(minima + i * kWidth, least[i]);
  }
}

#endif

Kernel kernel_of(Isa isa) {
#ifdef VIKHR_X86
  if (isa == Isa::avx512) return sign_avx512;
  if (isa == Isa::avx2) return sign_avx2;
#endif
  return sign_scalar;
}

}  // namespace

MinHash::MinHash(const MinHashSettings& settings, Isa isa)
    : settings_(settings), isa_(require_isa(isa)) {
  if (settings.num_perm < 1 || settings.num_perm > kMaxPermutations) {
    throw std::invalid_argument("num_perm is " + std::to_string(settings.num_perm) +
                                "; it must be from 1 to " + std::to_string(kMaxPermutations));
  }
  if (settings.bands < 1 || settings.num_perm % settings.bands != 0) {
    throw std::invalid_argument("bands is " + std::to_string(settings.bands) +
                                "; it must divide num_perm, " +
                                std::to_string(settings.num_perm));
  }
  const std::size_t padded = (settings.num_perm + kLanes - 1) / kLanes * kLanes;
  for (std::uint64_t i = 0; i < padded; ++i) {
    // Value i does not depend on how many there are.
    const std::uint64_t random = hash_word(hash_word(settings.seed) + i);
    multipliers_.push_back(static_cast<std::uint32_t>(random) | 1);
    offsets_.push_back(static_cast<std::uint32_t>(random >> 32));
  }
  for (std::uint64_t row = 0; row < rows(); ++row) key_factors_.push_back(hash_word(~row) | 1);
}

void MinHash::sign(const std::uint64_t* shingles, std::size_t count,
                   std::uint32_t* signature) const {
  constexpr std::size_t kPiece = 1 << 11;  // shingles that stay in the nearest cache
  const Kernel kernel = kernel_of(isa_);
  std::fill_n(signature, padded(), ~std::uint32_t{0});
  for (std::size_t start = 0; start < count; start += kPiece) {
    const std::size_t size = std::min(kPiece, count - start);
    for (std::size_t lane = 0; lane < padded(); lane += kLanes) {
      kernel(shingles + start, size, multipliers_.data() + lane, offsets_.data() + lane,
             signature + lane);
    }
  }
}

void MinHash::band_keys(const std::uint32_t* signature, std::uint32_t* keys) const {
  for (std::uint32_t band = 0; band < settings_.bands; ++band) {
    std::uint64_t sum = band;
    for (std::uint32_t row = 0; row < rows(); ++row) sum += *signature++ * key_factors_[row];
    keys[band] = static_cast<std::uint32_t>(hash_word(sum) >> 32);
  }
}

}  // namespace vikhr
