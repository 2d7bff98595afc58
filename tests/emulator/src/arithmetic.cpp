// Integer and floating arithmetic, lane by lane.
#include <type_traits>

#include "block.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

using Sources = std::vector<Register>;

// ---- integers ----

template <class T>
T quotient(T x, T y) {
  if (y == 0) return T(~T(0));
  if (std::is_signed_v<T> && y == T(-1)) return T(0 - std::make_unsigned_t<T>(x));
  return T(x / y);
}
template <class T>
T remainder(T x, T y) {
  if (y == 0) return x;
  return std::is_signed_v<T> && y == T(-1) ? T(0) : T(x % y);
}

template <class T>
Action integer(const std::string& operation, Register to, const Sources& from) {
  using U = std::make_unsigned_t<T>;
  constexpr u32 kBits = sizeof(T) * 8;
  const auto binary = [&](auto f) { return lanewise<T, T, T>(f, to, from[0], from[1]); };
  const auto unary = [&](auto f) { return lanewise<T, T>(f, to, from[0]); };
  const auto shift = [&](auto f) { return lanewise<T, T, u32>(f, to, from[0], from[1]); };
  if (operation == "add") return binary([](T x, T y) { return T(U(x) + U(y)); });
  if (operation == "sub") return binary([](T x, T y) { return T(U(x) - U(y)); });
  if (operation == "mul.lo") return binary([](T x, T y) { return T(u64(x) * u64(y)); });
  using Wide = std::conditional_t<std::is_signed_v<T>, s128, u128>;
  if (operation == "mul.hi")
    return binary([](T x, T y) { return T((Wide(x) * Wide(y)) >> kBits); });
  if (operation == "mad.lo")
    return lanewise<T, T, T, T>([](T x, T y, T z) { return T(u64(x) * u64(y) + u64(z)); }, to,
                                from[0], from[1], from[2]);
  if (operation == "div") return binary([](T x, T y) { return quotient(x, y); });
  if (operation == "rem") return binary([](T x, T y) { return remainder(x, y); });
  if (operation == "min") return binary([](T x, T y) { return std::min(x, y); });
  if (operation == "max") return binary([](T x, T y) { return std::max(x, y); });
  if (operation == "and") return binary([](T x, T y) { return T(x & y); });
  if (operation == "or") return binary([](T x, T y) { return T(x | y); });
  if (operation == "xor") return binary([](T x, T y) { return T(x ^ y); });
  if (operation == "not") return unary([](T x) { return T(~x); });
  if (operation == "neg") return unary([](T x) { return T(U(0) - U(x)); });
  if (operation == "abs") return unary([](T x) { return x < T(0) ? T(U(0) - U(x)) : x; });
  if (operation == "shl") return shift([](T x, u32 y) { return y >= kBits ? T(0) : T(U(x) << y); });
  if (operation == "shr")
    return shift([](T x, u32 y) { return y >= kBits ? T(x < T(0) ? -1 : 0) : T(x >> y); });
  return {};
}

Action integer_of(const std::string& type, const std::string& operation, Register to,
                  const Sources& from) {
  if (type == "s16") return integer<s16>(operation, to, from);
  if (type == "u16" || type == "b16") return integer<u16>(operation, to, from);
  if (type == "s32") return integer<s32>(operation, to, from);
  if (type == "u32" || type == "b32") return integer<u32>(operation, to, from);
  if (type == "s64") return integer<s64>(operation, to, from);
  if (type == "u64" || type == "b64") return integer<u64>(operation, to, from);
  return {};
}

// mul.wide and mad.wide: a product of twice as many bits.
template <class Wide, class T>
Action widening(Register to, const Sources& from) {
  using U = std::make_unsigned_t<Wide>;
  const auto product = [](T x, T y) { return Wide(U(Wide(x)) * U(Wide(y))); };
  if (from.size() == 2) return lanewise<Wide, T, T>(product, to, from[0], from[1]);
  return lanewise<Wide, T, T, Wide>([=](T x, T y, Wide z) { return Wide(U(product(x, y)) + U(z)); },
                                    to, from[0], from[1], from[2]);
}

Action decode_widening(Decoder& decoder, const Statement& statement) {
  const auto& operands = statement.operands;
  const bool adds = statement.name() == "mad";
  statement.allow({"wide"});
  statement.expect_operands(adds ? 4 : 3);
  const std::string& type = statement.type();
  const int bits = bits_of(type);
  if (bits > 32) refuse("products of 128 bits aren't modelled");
  Sources from{decoder.source(operands[1], bits), decoder.source(operands[2], bits)};
  if (adds) from.push_back(decoder.source(operands[3], 2 * bits));
  const Register to = decoder.destination(operands[0], 2 * bits);
  if (type == "u32") return widening<u64, u32>(to, from);
  if (type == "s32") return widening<s64, s32>(to, from);
  if (type == "u16") return widening<u32, u16>(to, from);
  return type == "s16" ? widening<s32, s16>(to, from) : Action();
}

// add.cc, addc, mad.lo.cc, madc.hi, ...: 32 bits and a carry.
Action decode_carrying(Decoder& decoder, const Statement& statement) {
  const std::string& name = statement.name();
  const bool multiplies = starts_with(name, "mad"), high = statement.has("hi");
  const bool takes = name.back() == 'c', gives = statement.has("cc");
  statement.allow({"lo", "hi", "cc"});
  if (!multiplies && !starts_with(name, "add")) refuse("borrows aren't modelled");
  if (bits_of(statement.type()) != 32) refuse("carries of 32 bits are modelled");
  statement.expect_operands(multiplies ? 4 : 3);
  const Register a = decoder.source(statement.operands[1], 32),
                 b = decoder.source(statement.operands[2], 32);
  const Register c = multiplies ? decoder.source(statement.operands[3], 32) : kNoRegister;
  const Register to = decoder.destination(statement.operands[0], 32);
  return [=](Warp& warp, Lanes lanes) {
    each_lane(lanes, [&](int lane) {
      const u32 x = warp.values<u32>(a)[lane], y = warp.values<u32>(b)[lane];
      u64 sum = multiplies ? (high ? u64(x) * y >> 32 : u32(x * y)) + u64(warp.values<u32>(c)[lane])
                           : u64(x) + y;
      if (takes) sum += warp.carry >> lane & 1;
      if (gives) warp.carry = (warp.carry & ~(1u << lane)) | u32(sum >> 32 & 1) << lane;
      warp.values<u32>(to)[lane] = u32(sum);
    });
  };
}

// ---- floats ----

template <class F, class... Registers>
Action single(bool flushes, F f, Register to, Registers... from) {
  if (!flushes)
    return lanewise<float, Each<Registers, float>...>([=](auto... x) { return one_nan(f(x...)); },
                                                      to, from...);
  const auto flushing = [=](auto... x) { return flushed(one_nan(f(flushed(x)...))); };
  return lanewise<float, Each<Registers, float>...>(flushing, to, from...);
}

// The right value or, where the launch is rough, one as wrong as the manual allows: up or down by
// the seed, but the same for the same value, which several warps may hold. What it says of 0 is
// exact.
template <class F, class... Registers>
Action approximation(bool flushes, double relative, double absolute, F exact, Register to,
                     Registers... from) {
  return [=](Warp& warp, Lanes lanes) {
    const Settings& settings = warp.launch().settings;
    for (Lanes left = lanes; left; left &= left - 1) {
      const int lane = first_lane(left);
      const auto input = [&](Register reg) {
        const float x = warp.values<float>(reg)[lane];
        return double(flushes ? flushed(x) : x);
      };
      double value = exact(input(from)...);
      const bool is_exact = value == 0 || !std::isfinite(value) || ((input(from) == 0) && ...);
      if (settings.rough && !is_exact) {
        const bool up = mixed(bits_as<u64>(value) ^ mixed(settings.seed)) & 1;
        value += (up ? 1 : -1) * std::max(std::fabs(value) * relative, absolute);
      }
      const float result = one_nan(float(value));
      warp.values<float>(to)[lane] = flushes ? flushed(result) : result;
    }
  };
}

Action approximation_of(const std::string& operation, bool flushes, Register to,
                        const Sources& from) {
  const auto unary = [&](double relative, double absolute, auto f) {
    return approximation(flushes, relative, absolute, f, to, from[0]);
  };
  if (operation == "ex2.approx") return unary(0x1p-22, 0, [](double x) { return std::exp2(x); });
  if (operation == "lg2.approx") return unary(0, 0x1p-22, [](double x) { return std::log2(x); });
  if (operation == "sin.approx") return unary(0, 0x1p-21, [](double x) { return std::sin(x); });
  if (operation == "cos.approx") return unary(0, 0x1p-21, [](double x) { return std::cos(x); });
  if (operation == "tanh.approx") return unary(0x1p-11, 0, [](double x) { return std::tanh(x); });
  if (operation == "rcp.approx") return unary(0x1p-23, 0, [](double x) { return 1 / x; });
  if (operation == "rsqrt.approx")
    return unary(0x1p-22, 0, [](double x) { return 1 / std::sqrt(x); });
  if (operation == "sqrt.approx") return unary(0x1p-22, 0, [](double x) { return std::sqrt(x); });
  if (operation == "div.full" || operation == "div.approx")
    return approximation(
        flushes, 0x1p-22, 0, [](double x, double y) { return x / y; }, to, from[0], from[1]);
  return {};
}

Action float32(const std::string& operation, bool flushes, Register to, const Sources& from) {
  const auto binary = [&](auto f) { return single(flushes, f, to, from[0], from[1]); };
  const auto unary = [&](auto f) { return single(flushes, f, to, from[0]); };
  if (operation == "add") return binary([](float x, float y) { return x + y; });
  if (operation == "sub") return binary([](float x, float y) { return x - y; });
  if (operation == "mul") return binary([](float x, float y) { return x * y; });
  if (operation == "fma" || operation == "mad")
    return single(
        flushes, [](float x, float y, float z) { return __builtin_fmaf(x, y, z); }, to, from[0],
        from[1], from[2]);
  if (operation == "div.rn") return binary([](float x, float y) { return x / y; });
  if (operation == "sqrt.rn") return unary([](float x) { return std::sqrt(x); });
  if (operation == "rcp.rn") return unary([](float x) { return 1 / x; });
  if (operation == "min") return binary(least);
  if (operation == "max") return binary(largest);
  if (operation == "min.NaN")
    return binary([](float x, float y) { return x != x || y != y ? NAN : least(x, y); });
  if (operation == "max.NaN")
    return binary([](float x, float y) { return x != x || y != y ? NAN : largest(x, y); });
  if (operation == "neg" && !flushes)
    return lanewise<u32, u32>([](u32 x) { return x ^ 0x80000000u; }, to, from[0]);
  if (operation == "abs" && !flushes)
    return lanewise<u32, u32>([](u32 x) { return x & 0x7fffffffu; }, to, from[0]);
  if (operation == "neg") return unary([](float x) { return -x; });
  if (operation == "abs") return unary([](float x) { return std::fabs(x); });
  return approximation_of(operation, flushes, to, from);
}

Action float64(const std::string& operation, Register to, const Sources& from) {
  const auto binary = [&](auto f) {
    return lanewise<double, double, double>(f, to, from[0], from[1]);
  };
  const auto unary = [&](auto f) { return lanewise<double, double>(f, to, from[0]); };
  if (operation == "add") return binary([](double x, double y) { return x + y; });
  if (operation == "sub") return binary([](double x, double y) { return x - y; });
  if (operation == "mul") return binary([](double x, double y) { return x * y; });
  if (operation == "fma")
    return lanewise<double, double, double, double>(
        [](double x, double y, double z) { return __builtin_fma(x, y, z); }, to, from[0], from[1],
        from[2]);
  if (operation == "div.rn") return binary([](double x, double y) { return x / y; });
  if (operation == "neg") return unary([](double x) { return -x; });
  if (operation == "abs") return unary([](double x) { return std::fabs(x); });
  if (operation == "sqrt.rn") return unary([](double x) { return std::sqrt(x); });
  if (operation == "rcp.rn") return unary([](double x) { return 1 / x; });
  // fmin and fmax: a number wins over a NaN, as here.
  if (operation == "min") return binary([](double x, double y) { return std::fmin(x, y); });
  if (operation == "max") return binary([](double x, double y) { return std::fmax(x, y); });
  return {};
}

// u16(u16...) in 16 bits or, in pairs, on both halves of 32.
template <class F, class... Registers>
Action narrow(bool pairs, F f, Register to, Registers... from) {
  if (!pairs) return lanewise<u16, Each<Registers, u16>...>(f, to, from...);
  return lanewise<u32, Each<Registers, u32>...>(
      [=](auto... x) { return f(u16(x)...) | u32(f(u16(x >> 16)...)) << 16; }, to, from...);
}

template <class Format>
Action float16(const std::string& operation, bool pairs, Register to, const Sources& from) {
  const auto binary = [&](auto f) {
    const auto g = [=](u16 x, u16 y) {
      return Format::narrow(f(Format::wide(x), Format::wide(y)));
    };
    return narrow(pairs, g, to, from[0], from[1]);
  };
  if (operation == "add") return binary([](float x, float y) { return x + y; });
  if (operation == "sub") return binary([](float x, float y) { return x - y; });
  if (operation == "mul") return binary([](float x, float y) { return x * y; });
  if (operation == "min") return binary(least);
  if (operation == "max") return binary(largest);
  if (operation == "neg") return narrow(pairs, [](u16 x) { return u16(x ^ 0x8000); }, to, from[0]);
  if (operation == "abs") return narrow(pairs, [](u16 x) { return u16(x & 0x7fff); }, to, from[0]);
  if (operation != "fma") return {};
  const auto fma = [](u16 x, u16 y, u16 z) {
    // The product is exact; of the sum, what doesn't fit decides where it lies between two doubles.
    const double product = double(Format::wide(x)) * Format::wide(y), addend = Format::wide(z),
                 sum = product + addend;
    const double part = sum - addend, error = (product - part) + (addend - (sum - part));
    const bool is_odd = bits_as<u64>(sum) & 1;
    const double exact = error == 0 || is_odd || !std::isfinite(sum)
                             ? sum
                             : std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
    return Format::narrow(rounded_to_odd(exact));
  };
  return narrow(pairs, fma, to, from[0], from[1], from[2]);
}

int operand_count(const std::string& name) {
  for (const char* unary :
       {"neg", "abs", "not", "sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"})
    if (name == unary) return 1;
  return name == "fma" || name == "mad" ? 3 : 2;
}

// A product and a sum that need no rounding of their own become one fma, as ptxas may have it.
Action contracted(Decoder& decoder, const Statement& statement, const Sources& from) {
  const bool subtracts = statement.name() == "sub";
  for (const std::size_t side : {0, 1}) {
    const auto* found = decoder.product(from[side]);
    if (!found) continue;
    const auto [a, b] = *found;
    const float product_sign = subtracts && side == 1 ? -1 : 1,
                other_sign = subtracts && side == 0 ? -1 : 1;
    const auto fma = [=](float x, float y, float z) {
      return one_nan(__builtin_fmaf(product_sign * x, y, other_sign * z));
    };
    const Register to = decoder.destination(statement.operands[0], 32);
    return lanewise<float, float, float, float>(fma, to, a, b, from[1 - side]);
  }
  return {};
}

}  // namespace

Action decode_arithmetic(Decoder& decoder, const Statement& statement) {
  const std::string &name = statement.name(), &type = statement.type();
  if (statement.has("cc") || name == "addc" || name == "madc" || name == "subc")
    return decode_carrying(decoder, statement);
  if ((name == "mul" || name == "mad") && statement.has("wide"))
    return decode_widening(decoder, statement);
  const int bits = bits_of(type), count = operand_count(name);
  if (bits < 16) return {};
  const bool is_single = type == "f32", flushes = statement.has("ftz");
  if (flushes && !is_single) refuse("ftz is modelled for f32");
  std::string operation = name;
  for (std::size_t i = 1; i + 1 < statement.words.size(); ++i) {
    const std::string& word = statement.words[i];
    const bool is_default =
        word == "rn" && (type[0] == 'f' || starts_with(type, "bf")) && count != 1 && name != "div";
    if (word != "ftz" && !is_default) operation += "." + word;
  }
  statement.expect_operands(std::size_t(count) + 1);
  Sources from;
  for (int i = 1; i <= count; ++i) {
    const bool is_shift = (name == "shl" || name == "shr") && i == 2;
    from.push_back(decoder.source(statement.operands[std::size_t(i)], is_shift ? 32 : bits));
  }
  const bool plain = is_single && statement.words.size() == 2;  // no rounding is asked for
  if (plain && (name == "add" || name == "sub"))
    if (Action fused = contracted(decoder, statement, from)) return fused;
  const Register to = decoder.destination(statement.operands[0], bits);
  if (plain && name == "mul") decoder.remember_product(to, from[0], from[1]);
  if (is_single) return float32(operation, flushes, to, from);
  if (type == "f64") return float64(operation, to, from);
  if (type == "f16" || type == "f16x2") return float16<Half>(operation, bits == 32, to, from);
  if (type == "bf16" || type == "bf16x2") return float16<Bfloat16>(operation, bits == 32, to, from);
  return integer_of(type, operation, to, from);
}

}  // namespace ptx
