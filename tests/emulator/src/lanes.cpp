// What the lanes of a warp tell each other.
#include "block.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

struct Shuffle {
  enum class Mode : u8 { up, down, bfly, idx } mode;
  Register to, within;  // the second: whether the source lane was in range; may be missing
  Register value, by, clamp, members;

  void operator()(Warp& warp, Lanes lanes) const {
    if (!have_members(warp, lanes, members, "shfl")) return;
    u32 results[kWarpSize];
    Lanes inside = 0;
    for (Lanes left = lanes; left; left &= left - 1) {
      const int lane = first_lane(left);
      const auto [source, in_range] = source_of(warp, lane);
      if (!(lanes >> source & 1))
        warp.find("shuffle from a lane that isn't there", format("lane %d from %d", lane, source));
      results[lane] = warp.values<u32>(value)[source];
      inside |= Lanes(in_range) << lane;
    }
    each_lane(lanes, [&](int lane) { warp.values<u32>(to)[lane] = results[lane]; });
    if (within != kNoRegister) warp.set_predicate(within, lanes, inside);
  }

 private:
  std::pair<int, bool> source_of(Warp& warp, int lane) const {
    const u32 c = warp.values<u32>(clamp)[lane], segment = c >> 8 & 31;
    const int shift = int(warp.values<u32>(by)[lane] & 31), least = lane & int(segment);
    const int most = least | int(c & 31 & ~segment);
    int source = 0;
    bool in_range = false;
    switch (mode) {
      case Mode::up:
        source = lane - shift;
        in_range = source >= most;
        break;
      case Mode::down:
        source = lane + shift;
        in_range = source <= most;
        break;
      case Mode::bfly:
        source = lane ^ shift;
        in_range = source <= most;
        break;
      case Mode::idx:
        source = least | (shift & int(~segment));
        in_range = source <= most;
        break;
    }
    return {in_range ? source : lane, in_range};
  }
};

Action decode_shuffle(Decoder& decoder, const Statement& statement) {
  const auto& operands = statement.operands;
  statement.allow({"sync", "up", "down", "bfly", "idx"});
  statement.expect_operands(5);
  if (!statement.has("sync")) refuse("shuffles without members aren't modelled");
  const std::string mode = statement.one_of({"up", "down", "bfly", "idx"});
  Shuffle shuffle{};
  shuffle.mode = mode == "up"     ? Shuffle::Mode::up
                 : mode == "down" ? Shuffle::Mode::down
                 : mode == "bfly" ? Shuffle::Mode::bfly
                                  : Shuffle::Mode::idx;
  shuffle.value = decoder.source(operands[1], 32);
  shuffle.by = decoder.source(operands[2], 32);
  shuffle.clamp = decoder.source(operands[3], 32);
  shuffle.members = decoder.source(operands[4], 32);
  shuffle.to = decoder.destination(operands[0], 32);
  shuffle.within = operands[0].second;
  return shuffle;
}

// Lane 0 where the seed is 0, else another: code may not depend on which.
Action decode_elect(Decoder& decoder, const Statement& statement) {
  statement.allow({"sync"}, false);
  statement.expect_operands(2);
  const Operand& to = statement.operands[0];
  if (!to.has_second) refuse("elect without a predicate");
  const Register members = decoder.source(statement.operands[1], 32);
  const Register leader_to = to.is(Operand::Kind::reg) ? decoder.destination(to, 32) : kNoRegister;
  if (to.second == kNoRegister) refuse("elect without a predicate");
  return [leader_to, members, elected = to.second](Warp& warp, Lanes lanes) {
    if (!have_members(warp, lanes, members, "elect")) return;
    int leader = int(warp.launch().settings.seed * 7 % kWarpSize);
    if (!(lanes >> leader & 1)) leader = first_lane(lanes);
    if (leader_to != kNoRegister)
      each_lane(lanes, [&](int lane) { warp.values<u32>(leader_to)[lane] = u32(leader); });
    warp.set_predicate(elected, lanes, 1u << leader);
  };
}

Action decode_vote(Decoder& decoder, const Statement& statement) {
  statement.allow({"sync", "ballot", "any", "all"});
  statement.expect_operands(3);
  Operand operand = statement.operands[1];
  const Lanes flip = operand.negated ? kAllLanes : 0;
  operand.negated = false;
  const Register from = decoder.source(operand, 1),
                 members = decoder.source(statement.operands[2], 32);
  if (statement.has("ballot")) {
    const Register to = decoder.destination(statement.operands[0], 32);
    return [=](Warp& warp, Lanes lanes) {
      if (!have_members(warp, lanes, members, "vote")) return;
      const Lanes votes = (warp.predicate(from) ^ flip) & lanes;
      each_lane(lanes, [&](int lane) { warp.values<u32>(to)[lane] = votes; });
    };
  }
  const bool all = statement.has("all");
  const Register to = decoder.destination(statement.operands[0], 1);
  return [=](Warp& warp, Lanes lanes) {
    if (!have_members(warp, lanes, members, "vote")) return;
    const Lanes votes = (warp.predicate(from) ^ flip) & lanes;
    warp.set_predicate(to, lanes, (all ? votes == lanes : votes != 0) ? kAllLanes : 0);
  };
}

template <class T, class F>
Action reduction(F combine, Register to, Register from, Register members) {
  return [=](Warp& warp, Lanes lanes) {
    if (!have_members(warp, lanes, members, "redux")) return;
    const T* values = warp.values<T>(from);
    T result = values[first_lane(lanes)];
    for (Lanes left = lanes & (lanes - 1); left; left &= left - 1)
      result = combine(result, values[first_lane(left)]);
    each_lane(lanes, [&](int lane) { warp.values<T>(to)[lane] = result; });
  };
}

Action decode_reduction(Decoder& decoder, const Statement& statement) {
  statement.allow({"sync", "add", "and", "or", "xor", "min", "max"});
  statement.expect_operands(3);
  if (bits_of(statement.type()) != 32 || statement.type() == "f32")
    refuse("only integers of 32 bits are modelled");
  const Register from = decoder.source(statement.operands[1], 32),
                 members = decoder.source(statement.operands[2], 32),
                 to = decoder.destination(statement.operands[0], 32);
  const std::string how = statement.one_of({"add", "and", "or", "xor", "min", "max"});
  const bool is_signed = statement.type() == "s32";
  if (how == "add") return reduction<u32>([](u32 x, u32 y) { return x + y; }, to, from, members);
  if (how == "and") return reduction<u32>([](u32 x, u32 y) { return x & y; }, to, from, members);
  if (how == "or") return reduction<u32>([](u32 x, u32 y) { return x | y; }, to, from, members);
  if (how == "xor") return reduction<u32>([](u32 x, u32 y) { return x ^ y; }, to, from, members);
  const auto pick = [&](auto f, auto g) {
    return is_signed ? reduction<s32>(f, to, from, members) : reduction<u32>(g, to, from, members);
  };
  if (how == "min")
    return pick([](s32 x, s32 y) { return std::min(x, y); },
                [](u32 x, u32 y) { return std::min(x, y); });
  return pick([](s32 x, s32 y) { return std::max(x, y); },
              [](u32 x, u32 y) { return std::max(x, y); });
}

}  // namespace

Action decode_lanes(Decoder& decoder, const Statement& statement) {
  const std::string& name = statement.name();
  if (name == "shfl") return decode_shuffle(decoder, statement);
  if (name == "elect") return decode_elect(decoder, statement);
  if (name == "vote") return decode_vote(decoder, statement);
  if (name == "redux") return decode_reduction(decoder, statement);
  if (name != "activemask") return {};
  const Register to = decoder.destination(statement.operands.at(0), 32);
  return [=](Warp& warp, Lanes lanes) {
    each_lane(lanes, [&](int lane) { warp.values<u32>(to)[lane] = lanes; });
  };
}

}  // namespace ptx
