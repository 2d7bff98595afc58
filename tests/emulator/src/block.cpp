#include "block.hpp"

#include <cstdarg>
#include <cstdio>

#include "instructions.hpp"

namespace ptx {

std::string format(const char* pattern, ...) {
  va_list arguments, again;
  va_start(arguments, pattern);
  va_copy(again, arguments);
  std::string text(std::vsnprintf(nullptr, 0, pattern, arguments), '\0');
  std::vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(again);
  va_end(arguments);
  return text;
}

std::string agent_name(int agent) {
  return agent < kMaxWarps ? format("warp %d", agent) : "a bulk copy";
}

Launch& Warp::launch() { return block->launch; }

void Warp::find(const char* kind, const std::string& detail) {
  launch().findings.add(kind, *current, format("block %d, warp %d, ", block->index, id) + detail);
}

void require_whole(Warp& warp, Lanes lanes, const char* what) {
  if (lanes != warp.live)
    warp.find("asynchronous instruction by part of a warp",
              format("%s by lanes %08x", what, lanes));
}

bool have_members(Warp& warp, Lanes lanes, Register members, const char* what) {
  for (Lanes left = lanes; left; left &= left - 1) {
    const int lane = first_lane(left);
    const Lanes expected = warp.values<Lanes>(members)[lane] & warp.live;
    if ((expected & ~lanes) == 0 && (expected >> lane & 1)) continue;
    warp.find("lanes without all of their members",
              format("%s: lane %d names %08x, here are %08x", what, lane, expected, lanes));
    return false;
  }
  return true;
}

Block::Block(Launch& launch_, int index_)
    : launch(launch_),
      index(index_),
      random(launch_.settings.seed * 1000003 + index_),
      warps(launch_.settings.warps) {
  const auto& grid = launch.settings.grid;
  id = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
  const Kernel& kernel = launch.kernel;
  shared.reset(kernel.static_shared + launch.settings.dynamic_shared, kernel.shared_grain);
  const std::size_t stride = (kernel.register_bytes + 63) / 64 * 64;
  registers_.assign(stride * warps.size() + 64, 0xff);
  u8* first = registers_.data() + (64 - reinterpret_cast<std::uintptr_t>(registers_.data()) % 64);
  for (std::size_t i = 0; i < warps.size(); ++i) {
    warps[i].block = this;
    warps[i].id = int(i);
    warps[i].random = Random(random.next());
    warps[i].registers = first + stride * i;
    set_registers(warps[i]);
  }
}

void Block::set_registers(Warp& warp) {
  const auto fill = [&](Register reg, int bits, auto value_of) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (bits == 16) warp.values<u16>(reg)[lane] = u16(value_of(lane));
      if (bits == 32) warp.values<u32>(reg)[lane] = u32(value_of(lane));
      if (bits == 64) warp.values<u64>(reg)[lane] = u64(value_of(lane));
    }
  };
  for (const Constant& constant : launch.kernel.constants) {
    if (constant.bits == 1) warp.set_predicate(constant.reg, kAllLanes, Lanes(constant.value));
    fill(constant.reg, constant.bits, [&](int) { return constant.value; });
  }
  const auto& grid = launch.settings.grid;
  for (const auto& [special, reg] : launch.kernel.specials)
    fill(reg, 32, [&, special = special](int lane) -> u32 {
      switch (special) {
        case Special::tid_x: return u32(warp.id * kWarpSize + lane);
        case Special::ntid_x: return u32(warps.size() * kWarpSize);
        case Special::ctaid_x: return id[0];
        case Special::ctaid_y: return id[1];
        case Special::ctaid_z: return id[2];
        case Special::nctaid_x: return grid[0];
        case Special::nctaid_y: return grid[1];
        case Special::nctaid_z: return grid[2];
        case Special::laneid: return u32(lane);
        case Special::warpid: return u32(warp.id);
        case Special::zero: return 0;
        case Special::one: return 1;
      }
      return 0;
    });
}

// At random or, where the seed is 0, the next by number.
Warp* Block::next_ready() {
  const bool in_turn = launch.settings.seed == 0;
  const std::size_t start = in_turn ? turn_++ : random.below(u32(warps.size()));
  for (std::size_t i = 0; i < warps.size(); ++i) {
    Warp& warp = warps[(start + i) % warps.size()];
    if (warp.state == State::ready || warp.state == State::spinning) return &warp;
  }
  return nullptr;
}

namespace {

// The lanes that are furthest back go first; those that meet go on together.
void reconverge(Warp& warp) {
  for (std::size_t i = 0; i < warp.diverged.size();) {
    Diverged& other = warp.diverged[i];
    if (other.lanes && warp.active && other.pc > warp.pc) {
      ++i;
      continue;
    }
    if (!warp.active || (other.lanes && other.pc < warp.pc)) {
      std::swap(other.pc, warp.pc);
      std::swap(other.lanes, warp.active);
      i = 0;
      continue;
    }
    warp.active |= other.lanes;
    warp.diverged.erase(warp.diverged.begin() + std::ptrdiff_t(i));
  }
}

// The sums of a product under way may be neither read nor written, its factors not written.
void check_registers(Warp& warp, const Instruction& instruction) {
  constexpr const char* kKind = "use of registers of a wgmma not waited for";
  for (const Register reg : instruction.reads)
    if (warp.sums.count(reg)) return warp.find(kKind, "reads a sum");
  for (const Register reg : instruction.writes) {
    if (warp.sums.count(reg) || warp.factors.count(reg))
      return warp.find(kKind, "writes a sum or a factor");
  }
}

// Until it waits, ends, or has made so many instructions.
void go_on(Warp& warp, u64 instructions) {
  Launch& launch = warp.launch();
  const std::vector<Instruction>& code = launch.kernel.code;
  u64 made = 0, lanes = 0;
  const u64 most = launch.settings.most_instructions;
  while (warp.state == State::ready && (made < instructions || !warp.diverged.empty()) &&
         made <= most) {
    const Instruction& instruction = code[warp.pc++];
    warp.current = &instruction;
    Lanes active = warp.active;
    if (instruction.guard != kNoRegister) {
      const Lanes guard = warp.predicate(instruction.guard);
      active &= instruction.guard_negated ? ~guard : guard;
    }
    constexpr u64 kBetweenInterrupts = 1 << 20;
    if (++launch.instructions % kBetweenInterrupts == 0) launch.interrupt();
    ++made;
    lanes += u64(__builtin_popcount(active));
    if (active) {
      if (!instruction.is_warpgroups) check_registers(warp, instruction);
      launch.executed[std::size_t(&instruction - code.data())] = 1;
      instruction.act(warp, active);
    }
    if (!warp.diverged.empty()) reconverge(warp);
  }
  warp.instructions += made;
  warp.lane_instructions += lanes;
}

}  // namespace

bool Block::release_barriers() {
  bool released = false;
  for (u32 barrier = 0; barrier < 16; ++barrier) {
    u32 waiting = 0, alive = 0, threads = 0;
    for (const Warp& warp : warps) {
      alive += warp.state != State::done;
      if (warp.state != State::at_barrier || warp.barrier != barrier) continue;
      ++waiting;
      threads = std::max(threads, warp.barrier_threads);
    }
    if (!waiting || waiting < (threads ? threads / kWarpSize : alive)) continue;
    Seen all;
    for (Warp& warp : warps)
      if (warp.state == State::at_barrier && warp.barrier == barrier) {
        warp.seen[warp.id] = now;
        all.join(warp.seen);
      }
    ++now;
    for (Warp& warp : warps)
      if (warp.state == State::at_barrier && warp.barrier == barrier) {
        warp.seen = all;
        warp.state = State::ready;
      }
    released = true;
  }
  return released;
}

bool Block::run() {
  constexpr u64 kMostIdleTurns = 2000;
  u64 idle = 0;
  bool ended = false;
  while (!ended) {
    Warp* warp = next_ready();
    bool progress = false;
    if (warp) {
      const bool was_spinning = warp->state == State::spinning;
      warp->state = State::ready;
      const u64 before = warp->instructions;
      go_on(*warp, launch.settings.preempts ? 1 + random.below(200) : ~u64{0});
      // A loop around a wait takes a few instructions to come back to it.
      progress = warp->state != State::spinning || !was_spinning || warp->instructions - before > 8;
      if (warp->instructions > launch.settings.most_instructions) {
        warp->find("doesn't end",
                   format("after %llu instructions, the limit",
                          static_cast<unsigned long long>(launch.settings.most_instructions)));
        break;
      }
    }
    progress |= release_barriers();
    progress |= progress_copies(*this);
    ended = std::all_of(warps.begin(), warps.end(),
                        [](const Warp& each) { return each.state == State::done; });
    idle = progress ? 0 : idle + 1;
    if (idle <= kMostIdleTurns) continue;
    for (Warp& each : warps)
      if (each.state != State::done) each.find("deadlock", "waits for ever");
    break;
  }
  for (const Warp& warp : warps) launch.lane_instructions += warp.lane_instructions;
  return ended;
}

}  // namespace ptx
