#pragma once

#include <pybind11/pybind11.h>

namespace vikhr {

void bind_minhash(pybind11::module_& module);

}  // namespace vikhr
