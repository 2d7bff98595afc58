// The Python module vikhr_fast._native. Conversions only: what is done is in the other files.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpe.hpp"
#include "cpu.hpp"
#include "extend_bindings.hpp"
#include "packing.hpp"

namespace py = pybind11;

namespace {

using vikhr::BpeEncoder;
using vikhr::IdBuffer;
using vikhr::InvalidUtf8;
using Integers = py::array_t<std::int64_t, py::array::c_style>;  // no cast that could lose digits

py::array_t<std::int32_t> to_numpy(IdBuffer ids) {
  const auto size = static_cast<py::ssize_t>(ids.size());
  if (size == 0) return py::array_t<std::int32_t>(0);
  std::int32_t* data = ids.release();
  const py::capsule owner(data, [](void* memory) { std::free(memory); });
  return py::array_t<std::int32_t>(size, data, owner);
}

py::array_t<std::int64_t> to_numpy(std::vector<std::int64_t> values) {
  auto kept = std::make_unique<std::vector<std::int64_t>>(std::move(values));
  const auto* vector = kept.get();
  const py::capsule owner(kept.release(), [](void* memory) {
    delete static_cast<std::vector<std::int64_t>*>(memory);
  });
  const auto size = static_cast<py::ssize_t>(vector->size());
  return py::array_t<std::int64_t>(size, vector->data(), owner);
}

std::size_t length_of(const Integers& values, const char* name) {
  if (values.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one axis");
  return static_cast<std::size_t>(values.size());
}

// Offsets count + 1 long that ascend within [0, size]; returns count.
std::size_t check_offsets(const Integers& offsets, std::size_t size, const char* what) {
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

InvalidUtf8 policy(bool replaces) { return replaces ? InvalidUtf8::replace : InvalidUtf8::raise; }

unsigned thread_count(int threads) {
  if (threads < 0) throw std::invalid_argument("threads must not be negative");
  return static_cast<unsigned>(threads);
}

std::pair<py::array_t<std::int32_t>, py::array_t<std::int64_t>> encode(
    const BpeEncoder& encoder, const vikhr::Texts& texts, bool replaces, int threads) {
  const unsigned count = thread_count(threads);
  py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(texts.size() + 1));
  std::int64_t* places = offsets.mutable_data();
  IdBuffer ids;
  {
    const py::gil_scoped_release released;
    ids = encoder.encode(texts, policy(replaces), count, places);
  }
  return {to_numpy(std::move(ids)), std::move(offsets)};
}

// The text of a str or bytes object, where it lies.
vikhr::Text text_of(py::handle text, std::size_t index) {
  if (PyBytes_Check(text.ptr()) != 0) {
    return {PyBytes_AS_STRING(text.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(text.ptr()))};
  }
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

auto encode_texts(const BpeEncoder& encoder, const py::sequence& texts, bool replaces,
                  int threads) {
  const py::tuple held(texts);  // nobody can change it while the GIL is released
  std::vector<vikhr::Text> views;
  views.reserve(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) views.push_back(text_of(held[i], i));
  return encode(encoder, vikhr::Texts(views), replaces, threads);
}

auto encode_buffer(const BpeEncoder& encoder, const py::buffer& buffer, const Integers& offsets,
                   bool replaces, int threads) {
  const py::buffer_info info = buffer.request();
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1)) {
    throw std::invalid_argument("the text buffer must be contiguous bytes");
  }
  const std::size_t count =
      check_offsets(offsets, static_cast<std::size_t>(info.size), "bytes of text");
  const vikhr::Texts texts(static_cast<const char*>(info.ptr), offsets.data(), count);
  return encode(encoder, texts, replaces, threads);
}

py::list decode(const BpeEncoder& encoder, const Integers& ids, const Integers& offsets) {
  const std::size_t count = check_offsets(offsets, length_of(ids, "ids"), "ids");
  py::list texts;
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t start = offsets.data()[i];
    {
      const py::gil_scoped_release released;
      text.clear();
      encoder.decode(ids.data() + start, static_cast<std::size_t>(offsets.data()[i + 1] - start),
                     text);
    }
    texts.append(py::str(text));
  }
  return texts;
}

const std::string& piece(const BpeEncoder& encoder, std::int64_t id) {
  const vikhr::Vocabulary& vocabulary = encoder.vocabulary();
  if (id < 0 || id >= vocabulary.size()) {
    throw py::index_error("id " + std::to_string(id) + " is not one of the vocabulary's " +
                          std::to_string(vocabulary.size()));
  }
  return vocabulary.piece(static_cast<vikhr::Id>(id)).text;
}

auto pack(const Integers& lengths, std::int64_t capacity, std::int64_t block) {
  const std::size_t count = length_of(lengths, "lengths");
  vikhr::Packing packing;
  {
    const py::gil_scoped_release released;
    packing = vikhr::pack_windows(lengths.data(), count, capacity, block);
  }
  return py::make_tuple(to_numpy(std::move(packing.window_document)),
                        to_numpy(std::move(packing.window_start)),
                        to_numpy(std::move(packing.window_length)),
                        to_numpy(std::move(packing.sequence_offsets)));
}

}  // namespace

// Encoders lock what their callers share, so free-threaded Python may run them without a GIL.
PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  using vikhr::PieceType;
  module.doc() = "The parts of vikhr_fast that are written in C++.";

  py::register_exception<vikhr::ModelError>(module, "ModelError", PyExc_ValueError);
  py::register_exception<vikhr::TextError>(module, "TextError", PyExc_ValueError);

  py::class_<BpeEncoder>(module, "BpeEncoder")
      .def(py::init([](const py::bytes& model_file) {
             const std::string_view view = model_file;
             const py::gil_scoped_release released;
             return std::make_unique<BpeEncoder>(view);
           }),
           py::arg("model_file"))
      .def("encode_texts", &encode_texts, py::arg("texts"), py::arg("replaces"),
           py::arg("threads"))
      .def("encode_buffer", &encode_buffer, py::arg("buffer"), py::arg("offsets"),
           py::arg("replaces"), py::arg("threads"))
      .def("decode", &decode, py::arg("ids"), py::arg("offsets"))
      .def("piece", &piece, py::arg("id"))
      .def("find", [](const BpeEncoder& encoder,
                      std::string_view text) { return encoder.vocabulary().find(text); },
           py::arg("piece"))
      .def_property_readonly("vocab_size",
                             [](const BpeEncoder& e) { return e.vocabulary().size(); })
      .def_property_readonly("unk_id", [](const BpeEncoder& e) {
        return e.vocabulary().special_id(e.vocabulary().model().unknown_piece, PieceType::unknown);
      })
      .def_property_readonly("bos_id", [](const BpeEncoder& e) {
        return e.vocabulary().special_id(e.vocabulary().model().begin_piece, PieceType::control);
      })
      .def_property_readonly("eos_id", [](const BpeEncoder& e) {
        return e.vocabulary().special_id(e.vocabulary().model().end_piece, PieceType::control);
      })
      .def_property_readonly("pad_id", [](const BpeEncoder& e) {
        return e.vocabulary().special_id(e.vocabulary().model().padding_piece, PieceType::control);
      });

  module.def("pack_windows", &pack, py::arg("lengths"), py::arg("capacity"), py::arg("block"));
  bind_extend(module);
  module.def("cpu_features", &vikhr::cpu_features);
}
