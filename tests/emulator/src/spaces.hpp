// Where the spaces of memory lie, among generic addresses too.
#pragma once

#include "kernel.hpp"

namespace ptx {

constexpr u32 kSharedBase = 1024;  // an address near 0 is an error
constexpr u64 kLocalBase = 0x1000;
constexpr u64 kLocalWindow = 0x10000000000u;
constexpr u64 kSharedWindow = 0x20000000000u;
constexpr u64 kWindowBytes = 0x1000000u;
// Global memory's addresses are those of the host; above them may be a number by tensor, so that no
// access that misses one hits another.
constexpr u64 kHostBits = (u64{1} << 47) - 1;

}  // namespace ptx
