// A warp: its registers, where it stands, and what it has under way.
#pragma once

#include <deque>
#include <set>
#include <vector>

#include "clock.hpp"
#include "findings.hpp"
#include "kernel.hpp"

namespace ptx {

struct Block;
struct Launch;

struct Diverged {
  int pc;
  Lanes lanes;
};

// 16 bytes or less on their way from global to shared memory.
struct AsyncCopy {
  u32 to;
  const u8* from;   // what is copied where copies read late
  u8 bytes, taken;  // the rest is zeros
  u8 data[16];
};

struct WarpgroupProduct;  // warpgroup.cpp: a wgmma that hasn't been waited for

struct ByteRange {
  u32 begin = ~0u, end = 0;
  void cover(u32 first, u32 last) {
    begin = std::min(begin, first);
    end = std::max(end, last);
  }
  bool overlaps(u32 first, u32 last) const { return begin < last && first < end; }
};

// What is issued, then committed as a group, then waited for by the number of groups that may be
// left.
template <class Item>
struct Groups {
  std::vector<Item> open;
  std::deque<std::vector<Item>> committed;

  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  template <class Finish>
  void wait(std::size_t left, Finish&& finish) {
    for (; committed.size() > left; committed.pop_front())
      for (Item& item : committed.front()) finish(item);
  }
};

enum class State : u8 { ready, at_barrier, spinning, done };

struct Warp {
  Block* block = nullptr;
  int id = 0;
  u8* registers = nullptr;

  int pc = 0;
  const Instruction* current = nullptr;
  Lanes live = kAllLanes, active = kAllLanes;
  std::vector<Diverged> diverged;
  State state = State::ready;
  u32 barrier = 0, barrier_threads = 0;  // what it waits at; 0 threads: all of the block
  u64 instructions = 0, lane_instructions = 0;
  Lanes carry = 0;  // of add.cc and the like

  Seen seen;
  std::vector<Time> fences;  // of every fence.proxy.async
  Seen fenced;               // what it had seen at the last one
  Groups<AsyncCopy> copies;
  Groups<WarpgroupProduct> products;
  bool products_fenced = false;
  std::set<Register> sums, factors;  // registers of products that weren't waited for
  std::vector<u8> local;             // a lane after the other
  Random random{1};
  std::size_t last_region = 0;

  template <class T>
  T* values(Register reg) {
    return reinterpret_cast<T*>(registers + reg);
  }
  Lanes predicate(Register reg) { return *values<Lanes>(reg); }
  void set_predicate(Register reg, Lanes lanes, Lanes value) {
    Lanes& old = *values<Lanes>(reg);
    old = (old & ~lanes) | (value & lanes);
  }

  bool has_seen(Agent agent, Time time) const { return agent == id || time <= seen[agent]; }
  void find(const char* kind, const std::string& detail);
  Launch& launch();
};

struct WarpgroupProduct {
  const Instruction* instruction;
  std::function<void(Warp&, WarpgroupProduct&)> finish;  // when it is waited for
  ByteRange a, b;                                        // of shared memory
  const std::vector<Register>*sums, *factors;
};

// What counts for each lane by itself is modelled for whole warps: a finding where only some lanes
// do it.
void require_whole(Warp& warp, Lanes lanes, const char* what);

// Whether all live lanes that a lane names as taking part do; a finding where they don't.
bool have_members(Warp& warp, Lanes lanes, Register members, const char* what);

inline int first_lane(Lanes lanes) { return __builtin_ctz(lanes); }

template <class F>
inline void each_lane(Lanes lanes, F&& f) {
  if (lanes == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kWarpSize; ++lane) f(lane);
  } else {
    for (; lanes; lanes &= lanes - 1) f(first_lane(lanes));
  }
}

}  // namespace ptx
