#include "bindings/extend.hpp"

#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpe/byte_extend.hpp"
#include "bpe/extend.hpp"
#include "bpe/extend_words.hpp"
#include "bpe/splitter.hpp"

namespace py = pybind11;

namespace {

using vikhr::ByteExtender;
using vikhr::Extender;
using vikhr::WordCounts;

// Of strings in a tuple, so that nobody can change it while the GIL is released.
std::vector<std::string_view> views_of(const py::tuple& texts) {
  std::vector<std::string_view> views;
  views.reserve(texts.size());
  for (const py::handle text : texts) {
    py::ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);  // valid UTF-8, or an error
    if (data == nullptr) throw py::error_already_set();
    views.emplace_back(data, static_cast<std::size_t>(size));
  }
  return views;
}

void add_texts(WordCounts& counts, const py::sequence& texts) {
  const py::tuple held(texts);
  const std::vector<std::string_view> views = views_of(held);
  const py::gil_scoped_release released;
  for (const std::string_view view : views) counts.add(view);
}

void add_words(WordCounts& counts, const std::vector<std::pair<py::bytes, std::uint64_t>>& words) {
  for (const auto& [word, count] : words) counts.add_word(std::string_view(word), count);
}

py::list words(const WordCounts& counts, std::size_t start, std::size_t stop) {
  if (start > stop || stop > counts.size()) throw py::index_error("no such words");
  py::list list;
  for (std::size_t i = start; i < stop; ++i) {
    list.append(py::make_tuple(py::str(counts.word(i)), counts.count(i)));
  }
  return list;
}

auto make_extender(const std::vector<std::pair<std::string, double>>& base,
                   vikhr::CharacterClasses classes, std::size_t max_characters,
                   double first_score) {
  std::vector<vikhr::ScoredPiece> pieces;
  pieces.reserve(base.size());
  for (const auto& [text, score] : base) {
    pieces.push_back({{}, score});
    vikhr::append_with_spaces(text, pieces.back().text);
  }
  return std::make_unique<Extender>(pieces, std::move(classes), max_characters, first_score);
}

void add_split(WordCounts& counts, std::string_view kind, const py::sequence& texts) {
  const vikhr::SplitKind split = vikhr::split_kind(kind);
  const py::tuple held(texts);
  const std::vector<std::string_view> views = views_of(held);
  const py::gil_scoped_release released;
  for (const std::string_view view : views) {
    vikhr::split(split, view, [&](std::string_view word) { counts.add_word(word, 1); });
  }
}

auto make_byte_extender(
    const std::vector<py::bytes>& tokens,
    const std::vector<std::pair<ByteExtender::Token, ByteExtender::Token>>& merges,
    vikhr::CharacterClasses classes, std::size_t max_characters, bool keeps_whole) {
  std::vector<std::string> texts(tokens.begin(), tokens.end());
  const py::gil_scoped_release released;
  return std::make_unique<ByteExtender>(
      std::move(texts), merges, vikhr::PieceRules(std::move(classes), max_characters), keeps_whole);
}

py::list learn_merges(ByteExtender& extender, std::size_t count) {
  std::vector<ByteExtender::Learnt> learnt;
  {
    const py::gil_scoped_release released;
    learnt = extender.learn(count);
  }
  py::list list;
  for (const ByteExtender::Learnt& merge : learnt) {
    list.append(py::make_tuple(py::bytes(merge.left), py::bytes(merge.right), merge.count));
  }
  return list;
}

py::list learn(Extender& extender, std::size_t count) {
  std::vector<Extender::Learnt> learnt;
  {
    const py::gil_scoped_release released;
    learnt = extender.learn(count);
  }
  py::list list;
  for (const Extender::Learnt& piece : learnt) {
    list.append(py::make_tuple(py::str(piece.text), piece.count));
  }
  return list;
}

}  // namespace

void bind_extend(py::module_& module) {
  py::class_<WordCounts>(module, "WordCounts")
      .def(py::init<std::size_t>(), py::arg("max_words"))
      .def("add", &add_texts, py::arg("texts"))
      .def("add_words", &add_words, py::arg("words"))
      .def("add_split", &add_split, py::arg("kind"), py::arg("texts"))
      .def("add_scaled", &WordCounts::add_scaled, py::arg("other"), py::arg("factor"),
           py::call_guard<py::gil_scoped_release>())
      .def("sort", &WordCounts::sort, py::call_guard<py::gil_scoped_release>())
      .def("words", &words, py::arg("start"), py::arg("stop"))
      .def("characters", &WordCounts::characters)
      .def("__len__", &WordCounts::size)
      .def_property_readonly("bytes", &WordCounts::bytes)
      .def_property_readonly("dropped", &WordCounts::dropped);

  py::class_<Extender>(module, "Extender")
      .def(py::init(&make_extender), py::arg("base"), py::arg("classes"),
           py::arg("max_characters"), py::arg("first_score"))
      .def("add_words", &Extender::add_words, py::arg("words"),
           py::call_guard<py::gil_scoped_release>())
      .def("learn", &learn, py::arg("count"));

  py::class_<ByteExtender>(module, "ByteExtender")
      .def(py::init(&make_byte_extender), py::arg("tokens"), py::arg("merges"), py::arg("classes"),
           py::arg("max_characters"), py::arg("keeps_whole"))
      .def("add_words", &ByteExtender::add_words, py::arg("words"),
           py::call_guard<py::gil_scoped_release>())
      .def("learn", &learn_merges, py::arg("count"));
}
