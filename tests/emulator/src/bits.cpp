// Fields, permutations and counts of bits.
#include "instructions.hpp"

namespace ptx {
namespace {

u32 permuted(u32 a, u32 b, u32 selector) {
  const u64 both = u64(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 which = selector >> (4 * i) & 15;
    u32 byte = u32(both >> (8 * (which & 7))) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;  // its sign
    result |= byte << (8 * i);
  }
  return result;
}

template <class T>
T field(T x, u32 position, u32 length) {
  position &= 255;
  length &= 255;
  const bool is_signed = T(-1) < T(0);
  const u32 sign = is_signed && length ? u32(x) >> std::min(position + length - 1, 31u) & 1 : 0;
  u32 result = 0;
  for (u32 i = 0; i < 32; ++i) {
    const u32 bit = i < length && position + i < 32 ? u32(x) >> (position + i) & 1 : sign;
    result |= bit << i;
  }
  return T(result);
}

u32 with_field(u32 inserted, u32 into, u32 position, u32 length) {
  position &= 255;
  length &= 255;
  if (position >= 32) return into;
  const u32 mask = u32((length >= 32 ? u64(~0u) : (u64{1} << length) - 1) << position);
  return (into & ~mask) | (inserted << position & mask);
}

u32 reversed(u32 x) {
  u32 result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
  return result;
}

u32 logic(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (u32 row = 0; row < 8; ++row)
    if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return result;
}

// shf: 32 bits out of 64.
Action funnel(const Statement& statement, Register to, Register low, Register high, Register by) {
  const bool left = statement.has("l"), wraps = statement.has("wrap");
  statement.allow({"l", "r", "wrap", "clamp"});
  return lanewise<u32, u32, u32, u32>(
      [=](u32 x, u32 y, u32 shift) {
        const u64 both = u64(y) << 32 | x;
        shift = wraps ? shift & 31 : std::min(shift, 32u);
        return u32(left ? both << shift >> 32 : both >> shift);
      },
      to, low, high, by);
}

}  // namespace

Action decode_bits(Decoder& decoder, const Statement& statement) {
  const std::string &name = statement.name(), &type = statement.type();
  const auto& operands = statement.operands;
  const auto from = [&](std::size_t i) { return decoder.source(operands.at(i), 32); };
  const auto to = [&] { return decoder.destination(operands.at(0), 32); };
  if (name == "popc" || name == "clz") {
    statement.allow({});
    statement.expect_operands(2);
    const int bits = value_bits(type, 32);
    const bool counts = name == "popc";
    const Register x = decoder.source(operands[1], bits);
    if (bits == 64)
      return lanewise<u32, u64>(
          [=](u64 v) {
            return u32(counts ? __builtin_popcountll(v) : v ? __builtin_clzll(v) : 64);
          },
          to(), x);
    return lanewise<u32, u32>(
        [=](u32 v) {
          return u32(counts ? __builtin_popcount(v) : v ? __builtin_clz(v) : 32);
        },
        to(), x);
  }
  if (name == "shf") {
    statement.expect_operands(4);
    const Register low = from(1), high = from(2), by = from(3);
    return funnel(statement, to(), low, high, by);
  }
  if (name != "bfe" && name != "bfi" && name != "prmt" && name != "lop3" && name != "brev")
    return {};
  statement.allow({});
  if (bits_of(type) != 32) refuse("only 32 bits are modelled");
  if (name == "brev") {
    statement.expect_operands(2);
    const Register x = from(1);
    return lanewise<u32, u32>(reversed, to(), x);
  }
  statement.expect_operands(name == "bfi" || name == "lop3" ? 5 : 4);
  const Register a = from(1), b = from(2), c = from(3);
  if (name == "bfe" && type == "s32")
    return lanewise<s32, s32, u32, u32>(field<s32>, to(), a, b, c);
  if (name == "bfe") return lanewise<u32, u32, u32, u32>(field<u32>, to(), a, b, c);
  if (name == "prmt") return lanewise<u32, u32, u32, u32>(permuted, to(), a, b, c);
  const Register d = from(4);
  return lanewise<u32, u32, u32, u32, u32>(name == "bfi" ? with_field : logic, to(), a, b, c, d);
}

}  // namespace ptx
