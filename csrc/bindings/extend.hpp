#pragma once

#include <pybind11/pybind11.h>

// Adds WordCounts and Extender to the module.
void bind_extend(pybind11::module_& module);
