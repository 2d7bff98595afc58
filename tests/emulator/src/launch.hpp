// A kernel launched over a grid: what Python asks for.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "block.hpp"

namespace ptx {

struct Report {
  std::vector<Finding> findings;
  std::vector<GlobalMemory::Span> memory;
  std::vector<int> executed_lines;  // of the PTX
  u64 lane_instructions;
};

// `arguments`: the bytes of each parameter. `memory`: all that may be touched, none overlapping.
// `interrupt` is called now and then, and may throw, to stop. Throws std::invalid_argument at
// arguments that aren't the kernel's.
Report launch(const Kernel& kernel, const Settings& settings,
              const std::vector<std::string>& arguments, const std::vector<Tensors>& memory,
              const std::function<void()>& interrupt);

}  // namespace ptx
