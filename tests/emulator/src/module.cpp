// The emulator for Python. Conversions only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decoder.hpp"
#include "launch.hpp"

namespace py = pybind11;

namespace ptx {
namespace {

using Arguments = std::vector<std::string>;

py::object location(const Instruction* instruction) {
  return instruction ? py::object(py::make_tuple(instruction->source, instruction->ptx_line,
                                                 instruction->text))
                     : py::none();
}

py::dict run(const Kernel& kernel, const std::array<u32, 3>& grid, int warps, u32 dynamic_shared,
             const Arguments& arguments,
             const std::vector<std::tuple<std::string, u64, u64, std::string>>& memory, u64 seed,
             bool preempts, bool late, bool rough, u64 most_instructions) {
  const Settings settings{grid,     warps, dynamic_shared, seed,
                          preempts, late,  rough,          most_instructions};
  std::vector<Tensors> tensors;
  for (const auto& [names, base, bytes, elements] : memory)
    tensors.push_back({names, base, bytes, elements});
  const Report report = launch(kernel, settings, arguments, tensors, [] {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  });
  py::list findings, spans;
  for (const Finding& finding : report.findings)
    findings.append(py::make_tuple(finding.kind, finding.detail, finding.source, finding.ptx_line,
                                   finding.text, finding.times));
  for (const GlobalMemory::Span& span : report.memory)
    spans.append(py::make_tuple(
        span.base, location(span.last_store),
        py::bytes(reinterpret_cast<const char*>(span.coverage.data()), span.coverage.size())));
  py::dict result;
  result["findings"] = findings;
  result["memory"] = spans;
  result["executed_lines"] = report.executed_lines;
  result["lane_instructions"] = report.lane_instructions;
  return result;
}

}  // namespace
}  // namespace ptx

PYBIND11_MODULE(_emulator, m) {
  using namespace ptx;
  py::class_<Kernel>(m, "Kernel")
      .def(py::init([](const std::string& text, bool contracts) {
             return Decoder(text, contracts).decode();
           }),
           py::arg("text"), py::kw_only(), py::arg("contracts") = false)
      .def_property_readonly("parameters",
                             [](const Kernel& kernel) { return kernel.parameters.size(); })
      .def("run", &run, py::kw_only(), py::arg("grid"), py::arg("warps"), py::arg("dynamic_shared"),
           py::arg("arguments"), py::arg("memory"), py::arg("seed") = 0,
           py::arg("preempts") = false, py::arg("late") = false, py::arg("rough") = false,
           py::arg("most_instructions") = u64{1} << 26);
}
