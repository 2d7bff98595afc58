// What comes before what: times of a block, and how far each agent has seen the others.
#pragma once

#include <algorithm>
#include <array>

#include "kernel.hpp"

namespace ptx {

// Who accesses memory: warps, then what copies for them, one for each mbarrier.
constexpr int kMaxWarps = 32;
constexpr int kAgents = 2 * kMaxWarps;
constexpr u8 kNobody = 0xff;

using Time = u32;

// By agent: its accesses up to this time come before what follows.
struct Seen : std::array<Time, kAgents> {
  Seen() { fill(0); }
  void join(const Seen& other) {
    for (int agent = 0; agent < kAgents; ++agent)
      (*this)[agent] = std::max((*this)[agent], other[agent]);
  }
};

}  // namespace ptx
