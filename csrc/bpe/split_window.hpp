// The next 64 bytes of a text, one bit for each, as far as where words end is to be seen from bytes alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace vikhr {

// The bytes of letters are those of ASCII and of the Cyrillic ones of U+0400 to U+047F; of a character of two bytes the
// bits of both are set.
struct ByteKinds {
  static constexpr std::size_t kBytes = 64;

  std::uint64_t letters = 0;
  std::uint64_t lower = 0;   // letters of lower case, but for Cyrillic ones beyond U+045F
  std::uint64_t upper = 0;   // first bytes of letters of upper case up to U+042F
  std::uint64_t signs = 0;   // of ASCII: neither letters nor digits nor space
  std::uint64_t spaces = 0;  // ' '
  std::uint64_t apostrophes = 0;
  std::uint64_t high = 0;    // beyond ASCII
};

namespace split_window {

constexpr std::size_t kLane = 16;
using Lane = unsigned char __attribute__((vector_size(kLane)));
using Flags = decltype(Lane() == Lane());  // all bits of a byte, or none

inline Lane each(unsigned char value) { return Lane() + value; }
inline Flags is(Lane bytes, unsigned char value) { return bytes == each(value); }
inline Flags is_within(Lane bytes, unsigned char first, unsigned char last) {
  return bytes - each(first) <= each(static_cast<unsigned char>(last - first));
}

// One bit for each byte, the first one lowest.
inline std::uint64_t bits_of(Flags flags) {
#ifdef __SSE2__
  return static_cast<std::uint32_t>(_mm_movemask_epi8(reinterpret_cast<__m128i>(flags)));
#else
  std::uint64_t bits = 0;
  for (std::size_t half = 0; half < 2; ++half) {
    std::uint64_t bytes;
    std::memcpy(&bytes, reinterpret_cast<const char*>(&flags) + 8 * half, sizeof bytes);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bytes = __builtin_bswap64(bytes);
#endif
    // One bit of each byte, gathered in the highest one.
    bits |= (bytes & 0x0101010101010101u) * 0x0102040810204080u >> 56 << 8 * half;
  }
  return bits;
#endif
}

}  // namespace split_window

// Of the 64 bytes at `bytes`, which start with a character's first byte.
template <bool kCased>
ByteKinds byte_kinds(const char* bytes) {
  using split_window::bits_of, split_window::is, split_window::is_within;
  ByteKinds kinds;
  std::uint64_t ascii = 0, ascii_lower = 0, others = 0, cyrillic = 0, lead_d1 = 0, from_b0 = 0, from_a0 = 0;
  for (std::size_t shift = 0; shift < ByteKinds::kBytes; shift += split_window::kLane) {
    split_window::Lane lane;
    std::memcpy(&lane, bytes + shift, sizeof lane);
    ascii |= bits_of(is_within(lane | split_window::each(0x20), 'a', 'z')) << shift;
    others |= bits_of(is_within(lane, '0', '9') | is_within(lane, '\t', '\r')) << shift;
    cyrillic |= bits_of(is(lane & split_window::each(0xFE), 0xD0)) << shift;  // first bytes: D0, D1
    kinds.spaces |= bits_of(is(lane, ' ')) << shift;
    kinds.apostrophes |= bits_of(is(lane, '\'')) << shift;
    kinds.high |= bits_of(lane > split_window::each(0x7F)) << shift;
    if (kCased) {
      ascii_lower |= bits_of(is_within(lane, 'a', 'z')) << shift;
      lead_d1 |= bits_of(is(lane, 0xD1)) << shift;
      from_b0 |= bits_of(lane >= split_window::each(0xB0)) << shift;
      from_a0 |= bits_of(lane >= split_window::each(0xA0)) << shift;
    }
  }
  constexpr std::uint64_t kWhole = ~std::uint64_t{0} >> 1;  // the second byte of the last is not seen
  cyrillic &= kWhole;
  kinds.letters = ascii | cyrillic | cyrillic << 1;
  kinds.signs = ~(ascii | others | kinds.spaces | kinds.high);
  if (kCased) {
    lead_d1 &= kWhole;
    const std::uint64_t lead_d0 = cyrillic & ~lead_d1;
    const std::uint64_t low = (lead_d0 & from_b0 >> 1) | (lead_d1 & ~(from_a0 >> 1));
    kinds.lower = ascii_lower | low | low << 1;
    kinds.upper = (ascii & ~ascii_lower) | (lead_d0 & ~(from_b0 >> 1));
  }
  return kinds;
}

}  // namespace vikhr
