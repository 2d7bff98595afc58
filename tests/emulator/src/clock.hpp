// What comes before what: times of a block, how far each agent has seen the others, and who
// accessed a place when.
#pragma once

#include <algorithm>
#include <array>
#include <memory>

#include "kernel.hpp"

namespace ptx {

// Who accesses memory: warps, then what copies for them, one for each mbarrier (the first and the
// 33rd are one).
constexpr int kMaxWarps = 32;
constexpr int kAgents = 2 * kMaxWarps;

using Agent = u8;
using Time = u32;

// By agent: its accesses up to this time come before what follows.
struct Seen : std::array<Time, kAgents> {
  Seen() { fill(0); }
  void join(const Seen& other) {
    for (int agent = 0; agent < kAgents; ++agent)
      (*this)[agent] = std::max((*this)[agent], other[agent]);
  }
};

// The accesses of one kind to one place that none of the later ones among them is known to follow.
class Accesses {
 public:
  bool any() const { return agents_ != 0; }
  void clear() {
    agents_ = 0;
    times_.reset();
  }
  void set(Agent agent, Time time) {
    clear();
    agents_ = u64{1} << agent;
    time_ = time;
  }
  // By an agent that has seen others up to `seen`: those that it follows need not be remembered.
  void add(Agent agent, Time time, const Seen& seen) {
    const u64 own = u64{1} << agent;
    if (agents_ & own && !times_ && time == time_) return;  // again
    forget_seen(seen);
    agents_ &= ~own;
    if (agents_ == 0) return set(agent, time);
    if (!times_ && time != time_) {
      times_ = std::make_unique<std::array<Time, kAgents>>();
      times_->fill(time_);
    }
    if (times_) (*times_)[agent] = time;
    agents_ |= own;
  }
  // One other than `agent` that it hasn't seen; -1 where it has seen all.
  int unseen_by(Agent agent, const Seen& seen) const {
    for (u64 left = agents_ & ~(u64{1} << agent); left; left &= left - 1) {
      const int other = __builtin_ctzll(left);
      if (time_of(other) > seen[other]) return other;
    }
    return -1;
  }
  // Whether it made one of them or has seen one.
  bool sees_any(Agent agent, const Seen& seen) const {
    if (agents_ >> agent & 1) return true;
    for (u64 left = agents_; left; left &= left - 1) {
      const int other = __builtin_ctzll(left);
      if (time_of(other) <= seen[other]) return true;
    }
    return false;
  }
  template <class F>
  void each(F&& f) const {
    for (u64 left = agents_; left; left &= left - 1)
      f(__builtin_ctzll(left), time_of(__builtin_ctzll(left)));
  }

 private:
  Time time_of(int agent) const { return times_ ? (*times_)[agent] : time_; }
  void forget_seen(const Seen& seen) {
    for (u64 left = agents_; left; left &= left - 1) {
      const int other = __builtin_ctzll(left);
      if (time_of(other) <= seen[other]) agents_ &= ~(u64{1} << other);
    }
  }

  u64 agents_ = 0;
  Time time_ = 0;                                     // of all of them
  std::unique_ptr<std::array<Time, kAgents>> times_;  // by agent, where they differ
};

}  // namespace ptx
