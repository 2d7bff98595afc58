#include "launch.hpp"

#include <numeric>

#include "decoder.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

void set_parameters(const Kernel& kernel, const std::vector<std::string>& arguments) {
  if (arguments.size() != kernel.parameters.size())
    refuse(format("%zu arguments for %zu parameters", arguments.size(), kernel.parameters.size()));
  u8* memory = reinterpret_cast<u8*>(kernel.parameter_memory.get());
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const Parameter& parameter = kernel.parameters[i];
    if (arguments[i].size() != parameter.size)
      refuse(format("argument %zu has %zu bytes, parameter %s has %u", i, arguments[i].size(),
                    parameter.name.c_str(), parameter.size));
    std::memcpy(memory + parameter.offset, arguments[i].data(), parameter.size);
  }
}

std::vector<int> block_order(const Settings& settings) {
  std::vector<int> order(std::size_t(settings.grid[0]) * settings.grid[1] * settings.grid[2]);
  std::iota(order.begin(), order.end(), 0);
  if (settings.seed == 0) return order;
  Random random(settings.seed);
  for (std::size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[random.below(u32(i))]);
  return order;
}

}  // namespace

Report launch(const Kernel& kernel, const Settings& settings,
              const std::vector<std::string>& arguments, const std::vector<Tensors>& memory,
              const std::function<void()>& interrupt) {
  if (settings.warps < 1 || settings.warps > kMaxWarps)
    refuse(format("%d warps; there may be 1 to %d", settings.warps, kMaxWarps));
  constexpr u32 kMostBlocks[] = {0x7fffffff, 65535, 65535};
  for (int axis = 0; axis < 3; ++axis)
    if (settings.grid[std::size_t(axis)] > kMostBlocks[axis])
      refuse(format("a grid of %u along axis %d; there may be %u", settings.grid[std::size_t(axis)],
                    axis, kMostBlocks[axis]));
  constexpr u32 kMostShared = 1 << 20;  // bytes, more than any chip has
  if (settings.dynamic_shared > kMostShared)
    refuse(format("%u bytes of shared memory", settings.dynamic_shared));
  set_parameters(kernel, arguments);
  GlobalMemory global(kernel.global_grain, memory, kernel);
  Findings findings;
  Launch state{kernel, settings, global, findings, std::vector<u8>(kernel.code.size()), interrupt};
  for (const int index : block_order(settings)) {
    interrupt();
    if (!Block(state, index).run()) break;
  }
  std::vector<int> lines;
  for (std::size_t i = 0; i < kernel.code.size(); ++i)
    if (state.executed[i]) lines.push_back(kernel.code[i].ptx_line);
  return {findings.list(), global.spans(), std::move(lines), state.lane_instructions};
}

}  // namespace ptx
