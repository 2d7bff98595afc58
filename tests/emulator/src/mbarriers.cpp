// Hopper's barriers in shared memory, which count arrivals and bytes, and the fence between
// proxies.
#include "block.hpp"
#include "instructions.hpp"

namespace ptx {

void Mbarrier::complete_phases() {
  while (pending == 0 && bytes == 0) {
    ++phase;
    pending = expected;
    released = arrived;
    if (expected == 0) break;
  }
}

Mbarrier* find_mbarrier(Warp& warp, u32 address, const char* what) {
  auto& mbarriers = warp.block->hopper.mbarriers;
  const auto found = mbarriers.find(address);
  if (found == mbarriers.end()) {
    warp.find("use of memory that isn't an mbarrier",
              format("%s of shared byte %d", what, int(address - kSharedBase)));
    return nullptr;
  }
  Mbarrier& barrier = found->second;
  if (!warp.has_seen(barrier.maker, barrier.made))
    warp.find("race on an mbarrier",
              format("%s not ordered after the init by warp %d", what, barrier.maker));
  barrier.used[warp.id] = warp.block->now;
  return &barrier;
}

namespace {

u32 shared_address(const Address& address, Warp& warp, Lanes lanes) {
  return u32(address.of(warp, first_lane(lanes)));
}

Action init(Decoder& decoder, const Statement& statement) {
  statement.expect_operands(2);
  const Address at = address_of(decoder, statement.operands[0]);
  const Register expected = decoder.source(statement.operands[1], 32);
  return [=](Warp& warp, Lanes lanes) {
    Block& block = *warp.block;
    if (lanes & (lanes - 1))
      warp.find("mbarrier init by several lanes", format("lanes %08x", lanes));
    const u32 address = shared_address(at, warp, lanes);
    if (!block.shared.allows(warp, address, 8, 8, first_lane(lanes), "mbarrier init")) return;
    Hopper& hopper = block.hopper;
    if (warp.values<u32>(expected)[first_lane(lanes)] == 0)
      warp.find("an mbarrier for no arrivals", "");
    if (hopper.mbarriers.count(address))
      warp.find("init of an mbarrier that is one already",
                format("shared byte %u", address - kSharedBase));
    block.shared.make_mbarrier(warp, address);
    const u8 fresh = u8(kMaxWarps + hopper.agents.size() % kMaxWarps);
    Mbarrier barrier{};
    barrier.expected = barrier.pending = warp.values<u32>(expected)[first_lane(lanes)];
    barrier.agent = hopper.agents.try_emplace(address, fresh).first->second;
    barrier.maker = u8(warp.id);
    barrier.made = barrier.used[warp.id] = block.now;
    hopper.mbarriers[address] = barrier;
  };
}

Action invalidate(Decoder& decoder, const Statement& statement) {
  statement.expect_operands(1);
  const Address at = address_of(decoder, statement.operands[0]);
  return [=](Warp& warp, Lanes lanes) {
    Block& block = *warp.block;
    const u32 address = shared_address(at, warp, lanes), byte = address - kSharedBase;
    const Mbarrier* barrier = find_mbarrier(warp, address, "inval");
    if (!barrier) return;
    for (const BulkCopy& copy : block.hopper.copies)
      if (copy.mbarrier == address)
        warp.find("inval of an mbarrier with a copy under way", format("shared byte %u", byte));
    if (barrier->bytes != 0 || barrier->pending != barrier->expected)
      warp.find("inval of an mbarrier in the middle of a phase",
                format("shared byte %u: %u arrivals and %lld bytes to come", byte, barrier->pending,
                       static_cast<long long>(barrier->bytes)));
    for (const Warp& other : block.warps)
      if (!warp.has_seen(u8(other.id), barrier->used[other.id]))
        warp.find("race on an mbarrier",
                  format("inval not ordered after a use by warp %d", other.id));
    block.hopper.mbarriers.erase(address);
    block.shared.forget_mbarrier(warp, address);
  };
}

Action arrive(Decoder& decoder, const Statement& statement) {
  const auto& operands = statement.operands;
  const bool expects = statement.has("expect_tx");
  if (operands.empty() || !operands[0].is(Operand::Kind::sink))
    refuse("the state of an mbarrier isn't modelled");
  statement.expect_operands(expects ? 3 : 2);
  const Address at = address_of(decoder, operands[1]);
  const Register bytes = expects ? decoder.source(operands[2], 32) : kNoRegister;
  return [=](Warp& warp, Lanes lanes) {
    for (; lanes; lanes &= lanes - 1) {
      const int lane = first_lane(lanes);
      Mbarrier* barrier = find_mbarrier(warp, u32(at.of(warp, lane)), "arrive");
      if (!barrier) return;
      if (barrier->pending == 0) {
        warp.find("more arrivals than an mbarrier was made for", format("lane %d", lane));
        return;
      }
      if (bytes != kNoRegister) barrier->bytes += warp.values<u32>(bytes)[lane];
      --barrier->pending;
      barrier->arrived.join(warp.seen);
      barrier->arrived[warp.id] = warp.block->now++;
      barrier->complete_phases();
    }
  };
}

Action try_wait(Decoder& decoder, const Statement& statement) {
  if (!statement.has("parity")) refuse("waits for a phase's parity are modelled");
  if (statement.operands.size() < 3) refuse("too few operands");
  const Address at = address_of(decoder, statement.operands[1]);
  const Register parity = decoder.source(statement.operands[2], 32);
  const Register to = decoder.destination(statement.operands[0], 1);
  return [=](Warp& warp, Lanes lanes) {
    Lanes done = 0;
    for (Lanes left = lanes; left; left &= left - 1) {
      const int lane = first_lane(left);
      const Mbarrier* barrier = find_mbarrier(warp, u32(at.of(warp, lane)), "wait");
      if (barrier && (barrier->phase & 1) == (warp.values<u32>(parity)[lane] & 1)) continue;
      done |= 1u << lane;
      if (!barrier) continue;
      warp.seen.join(barrier->released);
    }
    warp.set_predicate(to, lanes, done);
    if (done != lanes) warp.state = State::spinning;
  };
}

}  // namespace

Action decode_mbarrier(Decoder& decoder, const Statement& statement) {
  if (statement.name() == "fence" && statement.has("proxy")) {
    statement.allow({"proxy", "async", "shared::cta", "global"}, false);
    if (!statement.has("async")) refuse("this fence isn't modelled");
    if (statement.has("global")) return [](Warp&, Lanes) {};
    return [](Warp& warp, Lanes lanes) {
      require_whole(warp, lanes, "fence.proxy.async");
      Time& now = warp.block->now;
      warp.fences.push_back(now);
      warp.fenced = warp.seen;
      warp.fenced[std::size_t(warp.id)] = now++;
    };
  }
  if (statement.name() != "mbarrier") return {};
  statement.allow({"init", "inval", "arrive", "expect_tx", "try_wait", "test_wait", "parity",
                   "shared", "shared::cta", "release", "acquire", "relaxed", "cta"});
  if (statement.has("init")) return init(decoder, statement);
  if (statement.has("inval")) return invalidate(decoder, statement);
  if (statement.has("arrive")) return arrive(decoder, statement);
  return statement.has("try_wait") || statement.has("test_wait") ? try_wait(decoder, statement)
                                                                 : Action();
}

}  // namespace ptx
