#include "text/fold.hpp"

#include <cstring>

#ifdef VIKHR_X86
#include <immintrin.h>
#endif

#define VIKHR_INLINE [[gnu::always_inline]] inline

namespace vikhr {
namespace {

using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Bytes32 = std::uint8_t __attribute__((vector_size(32)));
using Bytes64 = std::uint8_t __attribute__((vector_size(64)));

// 0xFF where a byte is so.
struct alignas(kFoldBlock) ByteMasks {
  std::uint8_t separators[kFoldBlock];
  std::uint8_t odd[kFoldBlock];
};

// The macros are expressions on vectors: functions would pass these in registers that not every
// instruction set has.
#define VIKHR_IS(bytes, value) reinterpret_cast<Bytes>((bytes) == (value))
#define VIKHR_IN(bytes, first, last) \
  reinterpret_cast<Bytes>((bytes) - (first) <= static_cast<std::uint8_t>((last) - (first)))

template <typename Bytes>
VIKHR_INLINE void fold_part(const char* part, char* folded, std::uint8_t* separators,
                            std::uint8_t* odd) {
  Bytes before, here, after;
  std::memcpy(&before, part - 1, sizeof(Bytes));
  std::memcpy(&here, part, sizeof(Bytes));
  std::memcpy(&after, part + 1, sizeof(Bytes));

  const Bytes lower = here + (VIKHR_IN(here, 'A', 'Z') & 0x20);
  const Bytes is_word = VIKHR_IN(lower, 'a', 'z') | VIKHR_IN(here, '0', '9');
  const Bytes is_ascii = VIKHR_IN(here, 0, 0x7F);

  const Bytes is_d0 = VIKHR_IS(here, 0xD0), is_d1 = VIKHR_IS(here, 0xD1);
  const Bytes after_d0 = VIKHR_IS(before, 0xD0), after_d1 = VIKHR_IS(before, 0xD1);
  const Bytes is_lead =
      (is_d0 & VIKHR_IN(after, 0x80, 0xBF)) | (is_d1 & VIKHR_IN(after, 0x80, 0x9F));
  const Bytes is_trail =
      (after_d0 & VIKHR_IN(here, 0x80, 0xBF)) | (after_d1 & VIKHR_IN(here, 0x80, 0x9F));

  // Ѐ to Џ but Ё: D0 8x to D1 9x.  Ё and ё: to D0 B5, е.  А to П: D0 9x to D0 Bx.
  // Р to Я: D0 Ax to D1 8x.
  const Bytes to_d1 = is_d0 & ~VIKHR_IS(after, 0x81) &
                      (VIKHR_IN(after, 0x80, 0x8F) | VIKHR_IN(after, 0xA0, 0xAF));
  const Bytes to_d0 = is_d1 & VIKHR_IS(after, 0x91);
  constexpr std::uint8_t kToIe = 0xB5 - 0x91;
  static_assert(kToIe == (0x10 ^ (0xB5 - 0x81)));
  const Bytes trail_change = (after_d0 & VIKHR_IN(here, 0x80, 0x8F) & 0x10) ^
                             (after_d0 & VIKHR_IS(here, 0x81) & kToIe) ^
                             (after_d0 & VIKHR_IN(here, 0x90, 0x9F) & 0x20) ^
                             (after_d0 & VIKHR_IN(here, 0xA0, 0xAF) & 0xE0) ^
                             (after_d1 & VIKHR_IS(here, 0x91) & kToIe);
  const Bytes result = lower + trail_change + (to_d1 & 1) + to_d0;
  const Bytes is_separator = is_ascii & ~is_word;
  const Bytes is_odd = ~(is_ascii | is_lead | is_trail);
  std::memcpy(folded, &result, sizeof(Bytes));
  std::memcpy(separators, &is_separator, sizeof(Bytes));
  std::memcpy(odd, &is_odd, sizeof(Bytes));
}

#undef VIKHR_IS
#undef VIKHR_IN

template <typename Bytes>
VIKHR_INLINE void fold(const char* block, char* folded, ByteMasks& masks) {
  for (std::size_t at = 0; at < kFoldBlock; at += sizeof(Bytes)) {
    fold_part<Bytes>(block + at, folded + at, masks.separators + at, masks.odd + at);
  }
}

VIKHR_INLINE std::uint64_t bits(const std::uint8_t* mask) {
  std::uint64_t result = 0;
#ifdef VIKHR_X86
  for (std::size_t at = 0; at < kFoldBlock; at += 16) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(mask + at));
    result |= std::uint64_t{static_cast<std::uint32_t>(_mm_movemask_epi8(bytes))} << at;
  }
#else
  for (std::size_t i = 0; i < kFoldBlock; ++i) result |= std::uint64_t{mask[i]} >> 7 << i;
#endif
  return result;
}

FoldMasks fold_portable(const char* block, char* folded) {
  ByteMasks masks;
  fold<Bytes16>(block, folded, masks);
  return {bits(masks.separators), bits(masks.odd)};
}

#ifdef VIKHR_X86

__attribute__((target("avx2"))) FoldMasks fold_avx2(const char* block, char* folded) {
  ByteMasks masks;
  fold<Bytes32>(block, folded, masks);
  return {bits(masks.separators), bits(masks.odd)};
}

__attribute__((target("avx512bw"))) FoldMasks fold_avx512(const char* block, char* folded) {
  ByteMasks masks;
  fold<Bytes64>(block, folded, masks);
  return {_mm512_movepi8_mask(_mm512_load_si512(masks.separators)),
          _mm512_movepi8_mask(_mm512_load_si512(masks.odd))};
}

#endif

}  // namespace

FoldBlock fold_block(Isa isa) {
#ifdef VIKHR_X86
  if (isa == Isa::avx512) return fold_avx512;
  if (isa == Isa::avx2) return fold_avx2;
#endif
  static_cast<void>(isa);
  return fold_portable;
}

}  // namespace vikhr
