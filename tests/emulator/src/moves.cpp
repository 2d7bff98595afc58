// mov, selp, cvta, and logic of predicates.
#include "instructions.hpp"
#include "spaces.hpp"

namespace ptx {
namespace {

// Between a register and a vector of its parts.
Action move_parts(Decoder& decoder, const Statement& statement) {
  const Operand &to = statement.operands[0], &from = statement.operands[1];
  const bool unpacks = to.is(Operand::Kind::vector);
  const std::vector<Operand>& parts = unpacks ? to.list : from.list;
  const int bits = value_bits(statement.type(), 32);
  const int part_bits = parts.empty() ? 0 : bits / int(parts.size());
  if (part_bits != 16 && part_bits != 32) refuse("this move isn't modelled");
  std::vector<Register> registers;
  const Register source = unpacks ? decoder.source(from, bits) : kNoRegister;
  for (const Operand& part : parts)
    registers.push_back(unpacks ? decoder.destination(part, part_bits)
                                : decoder.source(part, part_bits));
  if (unpacks)
    return [=](Warp& warp, Lanes lanes) {
      each_lane(lanes, [&](int lane) {
        const u64 whole = read_lane(warp, source, bits, lane);
        for (std::size_t i = 0; i < registers.size(); ++i)
          write_lane(warp, registers[i], part_bits, lane, whole >> (int(i) * part_bits));
      });
    };
  const Register destination = decoder.destination(to, bits);
  return [=](Warp& warp, Lanes lanes) {
    each_lane(lanes, [&](int lane) {
      u64 whole = 0;
      for (std::size_t i = 0; i < registers.size(); ++i)
        whole |= read_lane(warp, registers[i], part_bits, lane) << (int(i) * part_bits);
      write_lane(warp, destination, bits, lane, whole);
    });
  };
}

Action move(Decoder& decoder, const Statement& statement) {
  statement.allow({});
  statement.expect_operands(2);
  if (statement.operands[0].is(Operand::Kind::vector) ||
      statement.operands[1].is(Operand::Kind::vector))
    return move_parts(decoder, statement);
  const int bits = bits_of(statement.type());
  const Register from = decoder.source(statement.operands[1], bits),
                 to = decoder.destination(statement.operands[0], bits);
  switch (bits) {
    case 1:
      return [=](Warp& warp, Lanes lanes) { warp.set_predicate(to, lanes, warp.predicate(from)); };
    case 16: return lanewise<u16, u16>([](u16 x) { return x; }, to, from);
    case 32: return lanewise<u32, u32>([](u32 x) { return x; }, to, from);
    case 64: return lanewise<u64, u64>([](u64 x) { return x; }, to, from);
  }
  return {};
}

template <class T>
Action select(Register to, Register yes, Register no, Register predicate) {
  return [=](Warp& warp, Lanes lanes) {
    const Lanes chosen = warp.predicate(predicate);
    T* out = warp.values<T>(to);
    const T *x = warp.values<T>(yes), *y = warp.values<T>(no);
    each_lane(lanes, [=](int lane) { out[lane] = chosen >> lane & 1 ? x[lane] : y[lane]; });
  };
}

Action decode_select(Decoder& decoder, const Statement& statement) {
  statement.allow({});
  statement.expect_operands(4);
  const auto& operands = statement.operands;
  const int bits = value_bits(statement.type(), 16);
  const Register yes = decoder.source(operands[1], bits), no = decoder.source(operands[2], bits);
  const Register predicate = decoder.source(operands[3], 1),
                 to = decoder.destination(operands[0], bits);
  if (bits == 16) return select<u16>(to, yes, no, predicate);
  return bits == 32 ? select<u32>(to, yes, no, predicate) : select<u64>(to, yes, no, predicate);
}

Action decode_logic(Decoder& decoder, const Statement& statement) {
  const std::string& name = statement.name();
  statement.allow({});
  statement.expect_operands(name == "not" ? 2 : 3);
  const Register a = decoder.source(statement.operands[1], 1);
  const Register b = name == "not" ? a : decoder.source(statement.operands[2], 1);
  const Register to = decoder.destination(statement.operands[0], 1);
  const auto logic = [=](auto f) {
    return [=](Warp& warp, Lanes lanes) {
      warp.set_predicate(to, lanes, f(warp.predicate(a), warp.predicate(b)));
    };
  };
  if (name == "and") return logic([](Lanes x, Lanes y) { return x & y; });
  if (name == "or") return logic([](Lanes x, Lanes y) { return x | y; });
  if (name == "xor") return logic([](Lanes x, Lanes y) { return x ^ y; });
  return logic([](Lanes x, Lanes) { return ~x; });
}

}  // namespace

Action decode_move(Decoder& decoder, const Statement& statement) {
  const std::string& name = statement.name();
  if (name == "mov") return move(decoder, statement);
  if (name == "selp") return decode_select(decoder, statement);
  if (statement.type() == "pred" &&
      (name == "and" || name == "or" || name == "xor" || name == "not"))
    return decode_logic(decoder, statement);
  if (name != "cvta") return {};
  statement.allow({"to", "shared", "shared::cta", "local", "global", "param", "const"});
  statement.expect_operands(2);
  const Register from = decoder.source(statement.operands[1], 64),
                 to = decoder.destination(statement.operands[0], 64);
  const bool is_shared = statement.has("shared") || statement.has("shared::cta");
  u64 shift = is_shared ? kSharedWindow : statement.has("local") ? kLocalWindow : 0;
  if (statement.has("to")) shift = 0 - shift;
  return lanewise<u64, u64>([=](u64 x) { return x + shift; }, to, from);
}

}  // namespace ptx
