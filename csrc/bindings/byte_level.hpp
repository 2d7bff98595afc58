// Byte-level BPE.
#pragma once

#include <pybind11/pybind11.h>

void bind_byte_level(pybind11::module_& module);
