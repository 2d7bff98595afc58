// cvt: between all types of up to 64 bits.
#include <limits>

#include "instructions.hpp"

namespace ptx {
namespace {

enum class Kind : u8 { is_signed, is_unsigned, floating, bfloat };

struct Type {
  Kind kind;
  int bits;
  bool is_floating() const { return kind == Kind::floating || kind == Kind::bfloat; }
};

Type type_of(const std::string& name) {
  const bool is_floating = name[0] == 'f' || starts_with(name, "bf");
  const int bits = value_bits(name, is_floating ? 16 : 8);
  if (name.find('x') != std::string::npos) refuse("conversions of ." + name + " aren't modelled");
  if (starts_with(name, "bf")) return {Kind::bfloat, bits};
  if (is_floating) return {Kind::floating, bits};
  return {name[0] == 's' ? Kind::is_signed : Kind::is_unsigned, bits};
}

struct Conversion {
  Type from, to;
  Rounding rounding = Rounding::nearest;
  bool to_integral = false;  // a floating number without fraction
  bool saturates = false, flushes = false;

  u64 operator()(u64 raw) const {
    return from.is_floating() ? from_floating(widened(raw)) : from_integer(raw);
  }

 private:
  double widened(u64 raw) const {
    if (from.kind == Kind::bfloat) return Bfloat16::wide(u16(raw));
    if (from.bits == 16) return Half::wide(u16(raw));
    if (from.bits == 64) return bits_as<double>(raw);
    const float x = bits_as<float>(u32(raw));
    return flushes ? flushed(x) : x;
  }
  u64 from_floating(double x) const {
    if (!to.is_floating()) return to_integer(x);
    if (to_integral) x = rounded_to_integer(x, rounding);
    if (saturates) x = x != x ? 0 : std::min(std::max(x, 0.0), 1.0);
    return narrowed(x);
  }
  // The value is exact in long double.
  u64 from_integer(u64 raw) const {
    const u64 shifted = raw << (64 - from.bits);  // the sign on top
    const bool is_signed = from.kind == Kind::is_signed;
    const u64 value =
        is_signed ? u64(s64(shifted) >> (64 - from.bits)) : shifted >> (64 - from.bits);
    if (to.is_floating())
      return narrowed(is_signed ? static_cast<long double>(s64(value))
                                : static_cast<long double>(value));
    if (!saturates) return value;
    return clamped(is_signed ? static_cast<s128>(s64(value)) : static_cast<s128>(value));
  }
  u64 narrowed(long double x) const {
    if (to.bits == 64) return bits_as<u64>(static_cast<double>(x));
    if (to.bits == 16)
      return to.kind == Kind::bfloat ? Bfloat16::narrow(rounded_to_odd(x))
                                     : Half::narrow(rounded_to_odd(x));
    const float single = to_integral ? static_cast<float>(x) : rounded_to_float(x, rounding);
    return bits_as<u32>(one_nan(flushes ? flushed(single) : single));
  }
  // The nearest integer that the type has. NaN is 0, or the top bit alone where either side has 64.
  u64 to_integer(double x) const {
    if (x != x) return from.bits == 64 || to.bits == 64 ? u64{1} << (to.bits - 1) : 0;
    const double whole = rounded_to_integer(x, rounding), limit = 0x1p100;
    return clamped(static_cast<s128>(std::min(std::max(whole, -limit), limit)));
  }
  u64 clamped(s128 x) const {
    const bool is_signed = to.kind == Kind::is_signed;
    const s128 top = (static_cast<s128>(1) << (to.bits - is_signed)) - 1,
               bottom = is_signed ? -top - 1 : 0;
    return u64(std::min(std::max(x, bottom), top));
  }
};

// cvt.rn.bf16x2.f32 d, high, low
Action to_pair(Decoder& decoder, const Statement& statement) {
  statement.allow({"rn", "bf16x2", "f16x2"});
  statement.expect_operands(3);
  if (statement.type() != "f32" || !statement.has("rn"))
    refuse("pairs are made of f32, rounded to nearest");
  const Register high = decoder.source(statement.operands[1], 32),
                 low = decoder.source(statement.operands[2], 32);
  const Register to = decoder.destination(statement.operands[0], 32);
  const auto pack = [=](auto narrow) {
    return lanewise<u32, float, float>(
        [=](float x, float y) { return u32(narrow(x)) << 16 | narrow(y); }, to, high, low);
  };
  return statement.has("bf16x2") ? pack(Bfloat16::narrow) : pack(Half::narrow);
}

// The frequent ones, many lanes at once.
Action fast(const std::string& to_type, const std::string& from_type, Register to, Register from) {
  if (to_type == "f32" && from_type == "bf16")
    return lanewise<float, u16>(Bfloat16::wide, to, from);
  if (to_type == "f32" && from_type == "f16") return lanewise<float, u16>(Half::wide, to, from);
  if (to_type == "bf16" && from_type == "f32")
    return lanewise<u16, float>(Bfloat16::narrow, to, from);
  if (to_type == "f16" && from_type == "f32") return lanewise<u16, float>(Half::narrow, to, from);
  if (to_type == "u64" && from_type == "u32")
    return lanewise<u64, u32>([](u32 x) { return u64(x); }, to, from);
  if (to_type == "s64" && from_type == "s32")
    return lanewise<s64, s32>([](s32 x) { return s64(x); }, to, from);
  return {};
}

}  // namespace

Action decode_conversion(Decoder& decoder, const Statement& statement) {
  if (statement.name() != "cvt") return {};
  for (const std::string& word : statement.words)
    if (starts_with(word, "e4m3") || starts_with(word, "e5m2"))
      refuse("conversions of ." + word + " aren't modelled");
  if (statement.has("bf16x2") || statement.has("f16x2")) return to_pair(decoder, statement);
  if (statement.words.size() < 3) refuse("cvt of one type");
  statement.expect_operands(2);
  const std::string &from_type = statement.type(),
                    &to_type = statement.words[statement.words.size() - 2];
  statement.allow(
      {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat", to_type.c_str()});
  Conversion conversion{type_of(from_type), type_of(to_type)};
  const std::string rounding =
      statement.one_of({"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi"});
  if (!rounding.empty()) {
    static const std::string kModes = "nzmp";
    conversion.rounding = Rounding(kModes.find(rounding[1]));
    conversion.to_integral = rounding.size() == 3;
  }
  if (conversion.to.is_floating() && conversion.to.bits != 32 &&
      conversion.rounding != Rounding::nearest && !conversion.to_integral)
    refuse("directed roundings are modelled to f32");
  conversion.saturates = statement.has("sat");
  conversion.flushes = statement.has("ftz");
  const auto [from, from_bits] = decoder.wide_source(
      statement.operands[1], conversion.from.bits == 8 ? 16 : conversion.from.bits);
  if (!statement.operands[0].is(Operand::Kind::reg)) refuse("not a register to write to");
  const int to_bits = statement.operands[0].bits;
  if (to_bits < conversion.to.bits) refuse("the destination is too narrow");
  const Register to = decoder.destination(statement.operands[0], to_bits);
  const bool plain = rounding.empty() || rounding == "rn";
  if (plain && !conversion.saturates && !conversion.flushes && to_bits == conversion.to.bits &&
      from_bits == conversion.from.bits)
    if (Action action = fast(to_type, from_type, to, from)) return action;
  return [=](Warp& warp, Lanes lanes) {
    each_lane(lanes, [&](int lane) {
      write_lane(warp, to, to_bits, lane, conversion(read_lane(warp, from, from_bits, lane)));
    });
  };
}

}  // namespace ptx
