// A thread block: its warps, the memory they share, and which of them goes on.
#pragma once

#include <array>

#include "global_memory.hpp"
#include "hopper.hpp"
#include "shared_memory.hpp"
#include "warp.hpp"

namespace ptx {

struct Settings {
  std::array<u32, 3> grid;
  int warps;           // of a block
  u32 dynamic_shared;  // bytes
  u64 seed;            // 0: blocks and warps in turn
  bool preempts;       // a warp may have to stop anywhere, not only where it waits
  bool late;   // asynchronous copies and products take what is in memory when they are waited for
  bool rough;  // approximations err as far as they may, tensor cores cut sums off
  u64 most_instructions;  // of a warp: more are a finding
};

struct Launch {
  const Kernel& kernel;
  const Settings& settings;
  GlobalMemory& memory;
  Findings& findings;
  std::vector<u8> executed;                // a flag for each instruction, by any lane
  const std::function<void()>& interrupt;  // may throw
  u64 instructions = 0, lane_instructions = 0;
};

struct Block {
  Block(Launch& launch, int index);

  // False where it could not come to its end.
  bool run();

  Launch& launch;
  int index;
  std::array<u32, 3> id;
  Random random;
  Time now = 1;
  SharedMemory shared;
  std::vector<Warp> warps;
  Hopper hopper;
  int products_under_way = 0;

 private:
  void set_registers(Warp& warp);
  Warp* next_ready();
  bool release_barriers();

  std::vector<u8> registers_;
  u64 turn_ = 0;
};

std::string agent_name(int agent);

}  // namespace ptx
