// What the bindings share: arrays and texts of Python's without copies.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/texts.hpp"

namespace vikhr {

namespace py = pybind11;

using Integers = py::array_t<std::int64_t, py::array::c_style>;  // no cast that could lose digits

template <typename Value>
py::array_t<Value> to_numpy(std::vector<Value> values) {
  auto kept = std::make_unique<std::vector<Value>>(std::move(values));
  const auto* vector = kept.get();
  const py::capsule owner(kept.release(),
                          [](void* memory) { delete static_cast<std::vector<Value>*>(memory); });
  return py::array_t<Value>(static_cast<py::ssize_t>(vector->size()), vector->data(), owner);
}

inline std::size_t length_of(const py::array& values, const char* name) {
  if (values.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one axis");
  return static_cast<std::size_t>(values.size());
}

// Offsets count + 1 long that ascend within [0, size]; returns count.
inline std::size_t check_offsets(const Integers& offsets, std::size_t size, const char* what) {
  const std::size_t count = length_of(offsets, "offsets");
  if (count == 0) throw std::invalid_argument("offsets must have at least one value");
  std::int64_t before = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t offset = offsets.data()[i];
    if (offset < before || offset > static_cast<std::int64_t>(size)) {
      throw std::invalid_argument("offset " + std::to_string(i) + " is " + std::to_string(offset) +
                                  "; offsets must ascend within the " + std::to_string(size) +
                                  " " + what);
    }
    before = offset;
  }
  return count - 1;
}

inline InvalidUtf8 policy(bool replaces) {
  return replaces ? InvalidUtf8::replace : InvalidUtf8::raise;
}

inline unsigned thread_count(int threads) {
  if (threads < 0) throw std::invalid_argument("threads must not be negative");
  return static_cast<unsigned>(threads);
}

inline std::string_view bytes_of(const py::buffer_info& info, const char* name) {
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1)) {
    throw std::invalid_argument(std::string(name) + " must be contiguous bytes");
  }
  return {static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size)};
}

// The text of a str or bytes object, where it lies.
inline Text text_of(py::handle text, std::size_t index) {
  if (PyBytes_Check(text.ptr()) != 0) {
    return {PyBytes_AS_STRING(text.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(text.ptr()))};
  }
  if (text.is_none()) throw std::invalid_argument("document " + std::to_string(index) + " is null; drop or fill it");
  if (PyUnicode_Check(text.ptr()) == 0) {
    throw py::type_error("document " + std::to_string(index) + " is neither str nor bytes");
  }
#if PY_VERSION_HEX < 0x030C0000
  if (PyUnicode_READY(text.ptr()) != 0) throw py::error_already_set();
#endif
  const bool is_ascii = PyUnicode_IS_ASCII(text.ptr()) != 0;
  return {PyUnicode_DATA(text.ptr()), static_cast<std::size_t>(PyUnicode_GET_LENGTH(text.ptr())),
          is_ascii ? 0u : static_cast<unsigned>(PyUnicode_KIND(text.ptr()))};
}

// Texts and the Python objects that own them, which nobody can change while the GIL is released.
class HeldTexts {
 public:
  // Of str or bytes objects.
  explicit HeldTexts(const py::sequence& texts) : owner_(texts) {
    texts_.reserve(owner_.size());
    for (std::size_t i = 0; i < owner_.size(); ++i) texts_.push_back(text_of(owner_[i], i));
  }

  // The texts of one UTF-8 buffer after another, each cut at its offsets.
  explicit HeldTexts(const std::vector<std::pair<py::buffer, Integers>>& parts) {
    for (const auto& [buffer, offsets] : parts) {
      buffers_.push_back(buffer.request());
      const std::string_view text = bytes_of(buffers_.back(), "the text buffer");
      const std::size_t count = check_offsets(offsets, text.size(), "bytes of text");
      for (std::size_t i = 0; i < count; ++i) {
        const auto start = static_cast<std::size_t>(offsets.data()[i]);
        const std::size_t length = static_cast<std::size_t>(offsets.data()[i + 1]) - start;
        texts_.push_back({text.data() + start, length});
      }
    }
  }

  HeldTexts(HeldTexts&&) = default;

  Texts texts() const { return Texts(texts_); }

 private:
  py::tuple owner_;
  std::vector<py::buffer_info> buffers_;
  std::vector<Text> texts_;
};

}  // namespace vikhr
