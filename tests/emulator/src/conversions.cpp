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
  const int bits = bits_of(name);
  if (bits == 0 || name.find('x') != std::string::npos)
    refuse("conversions of ." + name + " aren't modelled");
  if (starts_with(name, "bf")) return {Kind::bfloat, bits};
  if (name[0] == 'f') return {Kind::floating, bits};
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
    if (!to.is_floating()) return clamped(rounded_to_integer(x, rounding));
    if (to_integral) x = rounded_to_integer(x, rounding);
    if (saturates) x = x != x ? 0 : std::min(std::max(x, 0.0), 1.0);
    return narrowed(x);
  }
  u64 from_integer(u64 raw) const {
    const u64 shifted = raw << (64 - from.bits);  // the sign on top
    const bool is_signed = from.kind == Kind::is_signed;
    const u64 value =
        is_signed ? u64(s64(shifted) >> (64 - from.bits)) : shifted >> (64 - from.bits);
    if (!to.is_floating())
      return saturates ? clamped(is_signed ? double(s64(value)) : double(value)) : value;
    if (to.kind == Kind::floating && to.bits == 64)
      return narrowed(is_signed ? double(s64(value)) : double(value));
    // Straight to single precision: by way of double it would be rounded twice.
    if (rounding == Rounding::nearest)
      return narrowed(is_signed ? float(s64(value)) : float(value));
    return narrowed(is_signed ? double(s64(value)) : double(value));
  }
  u64 narrowed(double x) const {
    if (to.bits == 64) return bits_as<u64>(x);
    float single = to_integral ? float(x) : rounded_to_float(x, rounding);
    if (flushes) single = flushed(single);
    if (to.bits == 32) return bits_as<u32>(one_nan(single));
    if (to.kind == Kind::bfloat && rounding == Rounding::zero)
      return single != single ? 0x7fff : bits_as<u32>(single) >> 16;
    return to.kind == Kind::bfloat ? Bfloat16::narrow(single) : Half::narrow(single);
  }
  // To the nearest integer that the type has; NaN is 0, or the least one in 64 bits.
  u64 clamped(double x) const {
    const bool is_signed = to.kind == Kind::is_signed;
    const double limit = std::ldexp(1.0, to.bits - is_signed);
    const u64 top = ~u64{0} >> (64 - to.bits + is_signed);
    if (x != x) return is_signed && to.bits == 64 ? u64{1} << 63 : 0;
    if (x >= limit) return top;
    if (x <= (is_signed ? -limit : 0)) return is_signed ? ~top : 0;
    return is_signed ? u64(s64(x)) : u64(x);
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
