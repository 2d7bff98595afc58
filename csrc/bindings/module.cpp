// The Python module vikhr_fast._native. Conversions only: what is done is in the other files.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/byte_level.hpp"
#include "bindings/dedup.hpp"
#include "bpe/bpe.hpp"
#include "base/cpu.hpp"
#include "bindings/extend.hpp"
#include "bindings/ids.hpp"
#include "packing/packing.hpp"
#include "bindings/python.hpp"
#include "text/boundaries.hpp"

namespace py = pybind11;

namespace {

using vikhr::BpeEncoder;
using vikhr::Integers;
using vikhr::check_offsets;
using vikhr::encode;
using vikhr::length_of;
using vikhr::to_numpy;

auto encode_texts(const BpeEncoder& encoder, const py::sequence& texts, bool replaces,
                  int threads) {
  const vikhr::HeldTexts held(texts);
  return encode(encoder, held.texts(), replaces, threads);
}

auto encode_buffer(const BpeEncoder& encoder, const py::buffer& buffer, const Integers& offsets,
                   bool replaces, int threads) {
  const py::buffer_info info = buffer.request();
  const std::string_view text = vikhr::bytes_of(info, "the text buffer");
  const std::size_t count = check_offsets(offsets, text.size(), "bytes of text");
  return encode(encoder, vikhr::Texts(text.data(), offsets.data(), count), replaces, threads);
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

auto shared_boundaries(const Integers& first_lengths, const Integers& first_offsets, const Integers& first_starts,
                       const Integers& second_lengths, const Integers& second_offsets, const Integers& second_starts) {
  const std::size_t texts = check_offsets(first_offsets, length_of(first_lengths, "lengths"), "tokens");
  if (check_offsets(second_offsets, length_of(second_lengths, "lengths"), "tokens") != texts ||
      length_of(first_starts, "starts") != texts || length_of(second_starts, "starts") != texts) {
    throw std::invalid_argument("offsets and starts must be of the same texts");
  }
  for (const Integers& lengths : {first_lengths, second_lengths}) {
    if (std::any_of(lengths.data(), lengths.data() + lengths.size(), [](std::int64_t length) { return length < 0; })) {
      throw std::invalid_argument("lengths must not be negative");
    }
  }
  std::vector<std::int64_t> shared;
  {
    const py::gil_scoped_release released;
    shared = vikhr::shared_boundaries({first_lengths.data(), first_offsets.data(), first_starts.data()},
                                      {second_lengths.data(), second_offsets.data(), second_starts.data()}, texts);
  }
  return to_numpy(std::move(shared));
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
      .def("encode_held", &vikhr::encode_held<BpeEncoder>, py::arg("texts"), py::arg("replaces"), py::arg("threads"))
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

  vikhr::bind_minhash(module);

  module.def("pack_windows", &pack, py::arg("lengths"), py::arg("capacity"), py::arg("block"));
  module.def("shared_boundaries", &shared_boundaries, py::arg("first_lengths"), py::arg("first_offsets"),
             py::arg("first_starts"), py::arg("second_lengths"), py::arg("second_offsets"), py::arg("second_starts"));
  bind_extend(module);
  bind_byte_level(module);
  module.def("cpu_features", &vikhr::cpu_features);
}
