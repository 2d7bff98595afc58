#include "text/characters.hpp"

#include <algorithm>
#include <map>

namespace vikhr {
namespace {

struct Run {
  CodePoint first;
  CodePoint last;
  std::int32_t value;
};

#include "text/unicode_table.inc"

}  // namespace

const CharacterTable& CharacterTable::instance() {
  static const CharacterTable table;
  return table;
}

// Most pages are of separators only, or equal to another one.
CharacterTable::CharacterTable() {
  using Page = std::array<std::int32_t, 256>;
  std::map<std::size_t, Page> pages;  // by their numbers, those that have anything else
  const auto add = [&](const Run& run, std::int32_t value) {
    for (CodePoint start = run.first; start <= run.last; start = (start | 0xFF) + 1) {
      Page& page = pages[start >> 8];
      for (CodePoint c = start; c <= std::min(run.last, start | 0xFF); ++c) page[c & 0xFF] += value;
    }
  };
  for (const Run& run : kKinds) add(run, run.value);
  for (const Run& run : kFolds) add(run, run.value * 4);
  std::map<Page, std::uint16_t> known{{Page{}, 0}};
  entries_.resize(Page{}.size());
  for (const auto& [number, page] : pages) {
    const auto [place, is_new] = known.emplace(page, static_cast<std::uint16_t>(known.size()));
    if (is_new) entries_.insert(entries_.end(), page.begin(), page.end());
    pages_[number] = place->second;
  }
  for (CodePoint c = 0; c < short_forms_.size(); ++c) {
    const CharacterKind kind = this->kind(c);
    const bool fits = fold(c) < kSpecial;
    short_forms_[c] = kind == CharacterKind::separator        ? 0
                      : kind == CharacterKind::letter && fits ? static_cast<std::uint16_t>(fold(c))
                                                              : kSpecial;
  }
}

}  // namespace vikhr
