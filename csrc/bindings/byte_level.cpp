#include "bindings/byte_level.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/ids.hpp"
#include "bpe/byte_encoder.hpp"
#include "bpe/splitter.hpp"
#include "text/scan.hpp"

namespace py = pybind11;

namespace {

using vikhr::ByteEncoder;
using vikhr::Id;

auto make_encoder(std::vector<std::pair<std::string, Id>> tokens, const std::vector<std::tuple<Id, Id, Id>>& merges,
                  bool takes_whole, std::string_view kind, const std::vector<std::pair<std::string, Id>>& added) {
  std::vector<vikhr::ByteVocabulary::Merge> triples;
  triples.reserve(merges.size());
  for (const auto& [left, right, result] : merges) triples.push_back({left, right, result});
  std::vector<ByteEncoder::Added> texts;
  for (const auto& [text, id] : added) texts.push_back({text, id});
  const vikhr::SplitKind split = vikhr::split_kind(kind);
  const py::gil_scoped_release released;
  return std::make_unique<ByteEncoder>(std::move(tokens), triples, takes_whole, split, texts);
}

py::list split(std::string_view kind, std::string_view text) {
  if (!vikhr::is_valid_utf8(text)) throw std::invalid_argument("not valid UTF-8");
  py::list words;
  vikhr::split(vikhr::split_kind(kind), text, [&](std::string_view word) { words.append(py::bytes(word)); });
  return words;
}

}  // namespace

void bind_byte_level(py::module_& module) {
  py::class_<ByteEncoder>(module, "ByteEncoder")
      .def(py::init(&make_encoder), py::arg("tokens"), py::arg("merges"), py::arg("takes_whole"), py::arg("kind"),
           py::arg("added"))
      .def("encode_held", &vikhr::encode_held<ByteEncoder>, py::arg("texts"), py::arg("replaces"), py::arg("threads"))
      .def("merge", [](const ByteEncoder& encoder, const py::bytes& word) {
             return vikhr::ids_to_numpy(encoder.merge(word));
           }, py::arg("word"));

  module.def("split", &split, py::arg("kind"), py::arg("text"));
  module.def("may_compose", [](const vikhr::HeldTexts& held) {
    const py::gil_scoped_release released;
    return vikhr::may_compose(held.texts());
  }, py::arg("texts"));
}
