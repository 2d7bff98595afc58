// Branches, barriers, and what has no effect here.
#include <map>

#include "block.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

void exit_lanes(Warp& warp, Lanes lanes) {
  warp.live &= ~lanes;
  warp.active &= ~lanes;
  if (warp.live) return;
  warp.state = State::done;
  if (!warp.products.open.empty() || !warp.products.committed.empty())
    warp.find("end with products not waited for", "wgmma");
  for (const BulkCopy& copy : warp.block->hopper.copies)
    if (copy.warp == warp.id) warp.find("end with a copy not waited for", "bulk copy");
}

Action barrier(Decoder& decoder, const Statement& statement) {
  const auto& operands = statement.operands;
  statement.allow({"sync", "warp", "cta", "aligned"}, false);
  if (statement.has("warp")) {
    statement.expect_operands(1);
    const Register members = decoder.source(operands[0], 32);
    return [=](Warp& warp, Lanes lanes) { have_members(warp, lanes, members, "bar.warp"); };
  }
  if (!statement.has("sync") || operands.empty() || operands.size() > 2)
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
    if (warp.barrier_threads % kWarpSize != 0)
      warp.find("barrier of part of a warp", format("%u threads", warp.barrier_threads));
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
  // What orders nothing that isn't ordered here already, and hints.
  if (name == "fence" && !statement.has("proxy")) {
    statement.allow(
        {"acq_rel", "sc", "acquire", "release", "cta", "gpu", "sys", "cluster", "mbarrier_init"},
        false);
    return [](Warp&, Lanes) {};
  }
  static const std::map<std::string, std::vector<const char*>> kWithoutEffect = {
      {"membar", {"cta", "gl", "sys"}},
      {"prefetch", {"global", "local", "L1", "L2", "tensormap", "param"}},
      {"griddepcontrol", {"wait", "launch_dependents"}},
      {"nanosleep", {"u32"}},
      {"setmaxnreg", {"inc", "dec", "sync", "aligned", "u32"}}};
  const auto found = kWithoutEffect.find(name);
  if (found == kWithoutEffect.end()) return {};
  for (std::size_t i = 1; i < statement.words.size(); ++i)
    if (std::none_of(found->second.begin(), found->second.end(),
                     [&](const char* known) { return statement.words[i] == known; }))
      refuse("." + statement.words[i] + " isn't modelled");
  return [](Warp&, Lanes) {};
}

}  // namespace ptx
