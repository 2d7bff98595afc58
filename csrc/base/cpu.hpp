// Which vector instructions this machine has.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define VIKHR_X86 1
#endif

namespace vikhr {

inline std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#ifdef VIKHR_X86
  if (__builtin_cpu_supports("avx2")) features.emplace_back("avx2");
  if (__builtin_cpu_supports("avx512f")) features.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) features.emplace_back("avx512bw");
#endif
  return features;
}

// The instruction sets that some functions have a form for. All forms give the same results.
enum class Isa : std::uint32_t { scalar, avx2, avx512 };

inline Isa best_isa() {
#ifdef VIKHR_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return Isa::avx512;
  if (__builtin_cpu_supports("avx2")) return Isa::avx2;
#endif
  return Isa::scalar;
}

inline Isa require_isa(Isa isa) {
  if (isa > best_isa()) throw std::invalid_argument("this machine has no such instructions");
  return isa;
}

}  // namespace vikhr
