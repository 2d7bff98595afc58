// Numbers as a GPU has them: 16-bit floats, NaNs of one pattern, flushed denormals, directed
// roundings.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
__extension__ typedef __int128 s128;
__extension__ typedef unsigned __int128 u128;

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float one_nan(float x) { return x != x ? bits_as<float>(0x7fffffffu) : x; }

// Denormals become zero of their sign.
inline float flushed(float x) {
  const u32 bits = bits_as<u32>(x);
  return bits & 0x7f800000u ? x : bits_as<float>(bits & 0x80000000u);
}

struct Half {
  static float wide(u16 x) {
    // Shifted into place, the exponent's bias is 112 too small, for denormals as well.
    const float magnitude = bits_as<float>((x & 0x7fffu) << 13) * 0x1p112f;
    const u32 special = (x & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0;
    return bits_as<float>(bits_as<u32>(magnitude) | special | (x & 0x8000u) << 16);
  }
  static u16 narrow(float x) {
    if (x != x) return 0x7fff;
    const u32 bits = bits_as<u32>(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x477ff000u) return u16(sign | 0x7c00u);
    if (magnitude < 0x38800000u)  // a denormal: the sum's last bit is worth as much as its own
      return u16(sign | (bits_as<u32>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u));
    return u16(sign | (magnitude + 0xfffu + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
  }
};

struct Bfloat16 {
  static float wide(u16 x) { return bits_as<float>(u32(x) << 16); }
  static u16 narrow(float x) {
    const u32 bits = bits_as<u32>(x);
    return x != x ? u16(0x7fff) : u16((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  }
};

// A number wins over a NaN, and -0 is less than 0.
inline float least(float x, float y) {
  if (x != x || y != y) return x != x ? one_nan(y) : x;
  return x == y ? (std::signbit(x) ? x : y) : std::min(x, y);
}
inline float largest(float x, float y) {
  if (x != x || y != y) return x != x ? one_nan(y) : x;
  return x == y ? (std::signbit(x) ? y : x) : std::max(x, y);
}

enum class Rounding : u8 { nearest, zero, down, up };

inline double rounded_to_integer(double x, Rounding rounding) {
  switch (rounding) {
    case Rounding::nearest: return std::nearbyint(x);
    case Rounding::zero: return std::trunc(x);
    case Rounding::down: return std::floor(x);
    case Rounding::up: return std::ceil(x);
  }
  return x;
}

inline float rounded_to_float(long double x, Rounding rounding) {
  const float nearest = static_cast<float>(x);
  const long double back = nearest;
  if (rounding == Rounding::zero && std::fabs(back) > std::fabs(x))
    return std::nextafter(nearest, 0.0f);
  if (rounding == Rounding::down && back > x) return std::nextafter(nearest, -INFINITY);
  if (rounding == Rounding::up && back < x) return std::nextafter(nearest, INFINITY);
  return nearest;
}

// With a last bit of 1 where it isn't exact: what is rounded once more, to 16 bits, is as if it had
// been rounded once.
inline float rounded_to_odd(long double x) {
  const float cut = rounded_to_float(x, Rounding::zero);
  return x != x || cut == x ? cut : bits_as<float>(bits_as<u32>(cut) | 1);
}

// All bits of the result depend on all bits of x (the finaliser of splitmix64).
inline u64 mixed(u64 x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// xorshift*: which warp goes on, where a copy ends.
class Random {
 public:
  explicit Random(u64 seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x1234567u) {}
  u32 next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return u32(state_ * 0x2545f4914f6cdd1du >> 32);
  }
  u32 below(u32 limit) { return u32(u64(next()) * limit >> 32); }

 private:
  u64 state_;
};

}  // namespace ptx
