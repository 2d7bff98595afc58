// Branches, barriers, and what has no effect here.
#include "block.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

void exit_lanes(Warp& warp, Lanes lanes) {
  warp.live &= ~lanes;
  warp.active &= ~lanes;
  if (!warp.live) warp.state = State::done;
}

Action barrier(Decoder& decoder, const Statement& statement) {
  const auto& operands = statement.operands;
  if (statement.has("warp")) {
    statement.expect_operands(1);
    const Register members = decoder.source(operands[0], 32);
    return [=](Warp& warp, Lanes) {
      if (warp.values<Lanes>(members)[first_lane(warp.active)] & warp.live & ~warp.active)
        warp.find("warp barrier without all of its members", format("lanes %08x", warp.active));
    };
  }
  if (!statement.has("sync") || statement.has("red") || operands.empty() || operands.size() > 2)
    refuse("this barrier isn't modelled");
  const Register number = decoder.source(operands[0], 32);
  const Register threads = operands.size() > 1 ? decoder.source(operands[1], 32) : kNoRegister;
  return [=](Warp& warp, Lanes lanes) {
    if (lanes != warp.live)
      warp.find("barrier by part of a warp", format("lanes %08x of %08x", lanes, warp.live));
    const int lane = first_lane(lanes);
    warp.state = State::at_barrier;
    warp.barrier = warp.values<u32>(number)[lane];
    warp.barrier_threads = threads == kNoRegister ? 0 : warp.values<u32>(threads)[lane];
  };
}

}  // namespace

Action decode_control(Decoder& decoder, const Statement& statement) {
  const std::string& name = statement.name();
  if (name == "bra") {
    statement.allow({"uni"}, false);
    statement.expect_operands(1);
    if (!statement.operands[0].is(Operand::Kind::symbol)) refuse("not a label");
    const std::shared_ptr<int> target = decoder.label(statement.operands[0].symbol);
    return [target](Warp& warp, Lanes taken) {
      if (taken != warp.active) {
        warp.diverged.push_back({warp.pc, warp.active & ~taken});
        warp.active = taken;
      }
      warp.pc = *target;
    };
  }
  if (name == "ret" || name == "exit") return exit_lanes;
  if (name == "bar" || name == "barrier") return barrier(decoder, statement);
  if (name == "trap")
    return [](Warp& warp, Lanes lanes) { warp.find("trap", format("lanes %08x", lanes)); };
  if (name == "createpolicy") {
    const Register to = decoder.destination(statement.operands.at(0), 64);
    return lanewise<u64>([] { return u64{0}; }, to);
  }
  // Orders what is ordered already, or hints.
  static const char* const kWithoutEffect[] = {"membar",         "prefetch",  "prefetchu",
                                               "griddepcontrol", "discard",   "applypriority",
                                               "nanosleep",      "setmaxnreg"};
  for (const char* each : kWithoutEffect)
    if (name == each) return [](Warp&, Lanes) {};
  if (name == "fence" && !statement.has("proxy")) return [](Warp&, Lanes) {};
  return {};
}

}  // namespace ptx
