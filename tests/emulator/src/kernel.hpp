// A kernel as it is executed: its instructions, and what lies in memory before they begin.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "numbers.hpp"

namespace ptx {

struct Warp;

using Lanes = u32;  // a bit a lane
constexpr Lanes kAllLanes = ~Lanes{0};
constexpr int kWarpSize = 32;

// A register of a warp is 32 values side by side, or 32 bits for a predicate; this is the byte that
// it starts at.
using Register = int;
constexpr Register kNoRegister = -1;

struct Instruction {
  std::function<void(Warp&, Lanes)> act;  // the warp's pc is the next one's
  Register guard = kNoRegister;
  bool guard_negated = false;
  bool is_warpgroups = false;           // wgmma
  std::vector<Register> reads, writes;  // of the registers that wgmma has anywhere
  int ptx_line = 0;
  std::string source;  // where in the Python code, as Triton notes it: file:line:column
  std::string text;
};

struct Parameter {
  std::string name;
  u32 size, offset;
};

struct Constant {
  Register reg;
  int bits;
  u64 value;
};

enum class Special : u8 {
  tid_x,
  ntid_x,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  zero,
  one
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  std::unique_ptr<u64[]> parameter_memory;  // allocated, so that its address never changes
  u32 parameter_bytes = 0;
  std::vector<std::pair<std::string, std::vector<u8>>> arrays;  // of the module, in constant memory
  std::vector<Constant> constants;
  std::vector<std::pair<Special, Register>> specials;
  int register_bytes = 0;  // of a warp
  u32 static_shared = 0;   // bytes, a multiple of kSharedAlignment
  u32 local_bytes = 0;     // of a lane
  // Log2 of the bytes that are watched together: those of the smallest store.
  int shared_grain = 2, global_grain = 2;

  bool has_parameter_bytes(u64 address, u32 bytes) const {
    const u64 offset = address - reinterpret_cast<u64>(parameter_memory.get());
    return offset <= parameter_bytes && bytes <= parameter_bytes - offset;
  }
};

constexpr u32 kSharedAlignment = 1024;

}  // namespace ptx
