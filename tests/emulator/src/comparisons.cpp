// setp: lanes compared, and the outcome combined with another predicate.
#include <type_traits>

#include "instructions.hpp"

namespace ptx {
namespace {

struct Outcome {
  Register predicate, inverse;  // the second may be missing
  std::string boolean;          // and, or, xor with `other`; empty for none
  Register other = kNoRegister;
  bool negates_other = false;

  void set(Warp& warp, Lanes lanes, Lanes holds) const {
    Lanes is = holds, is_not = ~holds;
    if (!boolean.empty()) {
      const Lanes with = warp.predicate(other) ^ (negates_other ? kAllLanes : 0);
      const auto combine = [&](Lanes x) {
        return boolean == "and" ? x & with : boolean == "or" ? x | with : x ^ with;
      };
      is = combine(is);
      is_not = combine(is_not);
    }
    if (predicate != kNoRegister) warp.set_predicate(predicate, lanes, is);
    if (inverse != kNoRegister) warp.set_predicate(inverse, lanes, is_not);
  }
};

template <class T, class F>
Action comparing(F compare, Register a, Register b, const Outcome& outcome) {
  return [=](Warp& warp, Lanes lanes) {
    const T *x = warp.values<T>(a), *y = warp.values<T>(b);
    Lanes holds = 0;
    for (int lane = 0; lane < kWarpSize; ++lane)
      holds |= Lanes(bool(compare(x[lane], y[lane]))) << lane;
    outcome.set(warp, lanes, holds);
  };
}

template <class T>
Action compare(const std::string& operation, bool flushes, Register a, Register b,
               const Outcome& outcome) {
  const auto by = [&](auto f) {
    if constexpr (std::is_same_v<T, float>)
      if (flushes)
        return comparing<T>([=](T x, T y) { return f(flushed(x), flushed(y)); }, a, b, outcome);
    return comparing<T>(f, a, b, outcome);
  };
  if (operation == "eq") return by([](T x, T y) { return x == y; });
  if (operation == "ne") return by([](T x, T y) { return x < y || x > y; });
  if (operation == "lt" || operation == "lo") return by([](T x, T y) { return x < y; });
  if (operation == "le" || operation == "ls") return by([](T x, T y) { return x <= y; });
  if (operation == "gt" || operation == "hi") return by([](T x, T y) { return x > y; });
  if (operation == "ge" || operation == "hs") return by([](T x, T y) { return x >= y; });
  // With u, NaNs count as well.
  if (operation == "equ") return by([](T x, T y) { return !(x < y || x > y); });
  if (operation == "neu") return by([](T x, T y) { return x != y; });
  if (operation == "ltu") return by([](T x, T y) { return !(x >= y); });
  if (operation == "leu") return by([](T x, T y) { return !(x > y); });
  if (operation == "gtu") return by([](T x, T y) { return !(x <= y); });
  if (operation == "geu") return by([](T x, T y) { return !(x < y); });
  if (operation == "num") return by([](T x, T y) { return x == x && y == y; });
  if (operation == "nan") return by([](T x, T y) { return x != x || y != y; });
  return {};
}

}  // namespace

Action decode_comparison(Decoder& decoder, const Statement& statement) {
  if (statement.name() != "setp") return {};
  const auto& operands = statement.operands;
  const std::string operation = statement.words.at(1), type = statement.type();
  const int bits = value_bits(type, 16);
  const bool flushes = statement.has("ftz");
  Outcome outcome{kNoRegister, kNoRegister, statement.one_of({"and", "or", "xor"}), kNoRegister,
                  false};
  statement.allow({operation.c_str(), "and", "or", "xor", "ftz"});
  statement.expect_operands(outcome.boolean.empty() ? 3 : 4);
  const Register a = decoder.source(operands[1], bits), b = decoder.source(operands[2], bits);
  if (!outcome.boolean.empty()) {
    Operand other = operands[3];
    outcome.negates_other = other.negated;
    other.negated = false;
    outcome.other = decoder.source(other, 1);
  }
  if (operands[0].is(Operand::Kind::reg)) outcome.predicate = decoder.destination(operands[0], 1);
  outcome.inverse = operands[0].second;
  if (type == "f32") return compare<float>(operation, flushes, a, b, outcome);
  if (type == "f64") return compare<double>(operation, flushes, a, b, outcome);
  if (type == "s16") return compare<s16>(operation, flushes, a, b, outcome);
  if (type == "u16" || type == "b16") return compare<u16>(operation, flushes, a, b, outcome);
  if (type == "s32") return compare<s32>(operation, flushes, a, b, outcome);
  if (type == "u32" || type == "b32") return compare<u32>(operation, flushes, a, b, outcome);
  if (type == "s64") return compare<s64>(operation, flushes, a, b, outcome);
  if (type == "u64" || type == "b64") return compare<u64>(operation, flushes, a, b, outcome);
  return {};
}

}  // namespace ptx
