// Encoding with any encoder, and ids as arrays without a copy.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "bindings/python.hpp"
#include "bpe/id_buffer.hpp"

namespace vikhr {

inline py::array_t<std::int32_t> ids_to_numpy(IdBuffer ids) {
  const auto size = static_cast<py::ssize_t>(ids.size());
  if (size == 0) return py::array_t<std::int32_t>(0);
  std::int32_t* data = ids.release();
  const py::capsule owner(data, [](void* memory) { std::free(memory); });
  return py::array_t<std::int32_t>(size, data, owner);
}

template <typename Encoder>
std::pair<py::array_t<std::int32_t>, py::array_t<std::int64_t>> encode(const Encoder& encoder, const Texts& texts,
                                                                       bool replaces, int threads) {
  const unsigned count = thread_count(threads);
  py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(texts.size() + 1));
  std::int64_t* places = offsets.mutable_data();
  IdBuffer ids;
  {
    const py::gil_scoped_release released;
    ids = encoder.encode(texts, policy(replaces), count, places);
  }
  return {ids_to_numpy(std::move(ids)), std::move(offsets)};
}

template <typename Encoder>
auto encode_held(const Encoder& encoder, const HeldTexts& held, bool replaces, int threads) {
  return encode(encoder, held.texts(), replaces, threads);
}

}  // namespace vikhr
