// What Hopper has beside its warps: barriers in shared memory, and the engine that copies boxes of
// tensors there.
#pragma once

#include <unordered_map>
#include <vector>

#include "warp.hpp"

namespace ptx {

struct Mbarrier {
  u32 expected, pending;  // arrivals of a phase, and those that are still to come
  s64 bytes = 0;          // that are still to come
  u32 phase = 0;
  u8 agent;  // that copies on its behalf
  u8 maker;  // the warp, which made it then
  Time made;
  Time used[kMaxWarps] = {};  // by a warp, the last time
  Seen arrived, released;  // what those who arrived had seen: in this phase, and in the last that
                           // was completed

  void complete_phases();
};

// A box of a tensor on its way to shared memory.
struct BulkCopy {
  struct Row {
    u32 offset, bytes;  // in the box
    const u8* from;
  };
  int warp;  // that asked for it
  u32 mbarrier, to;
  int swizzle;
  u8 agent;
  std::vector<Row> rows;  // that are still to be read, where copies read late
  std::vector<u8> box;
};

// The bytes of a box of 16-byte pieces: its piece at an address is at this one. 1: within 32 bytes,
// 2: 64, 3: 128.
inline u32 swizzled(u32 address, int swizzle) {
  return address ^ (address >> 3 & ((1u << swizzle) - 1) << 4);
}

struct Hopper {
  std::unordered_map<u32, Mbarrier> mbarriers;  // by shared address
  std::unordered_map<u32, u8> agents;           // of every address that ever was one
  std::vector<BulkCopy> copies;
};

// Null, and a finding, where there is none; notes that the warp uses it.
Mbarrier* find_mbarrier(Warp& warp, u32 address, const char* what);

}  // namespace ptx
