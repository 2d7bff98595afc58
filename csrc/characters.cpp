#include "characters.hpp"

#include <algorithm>
#include <map>

namespace vikhr {
namespace {

struct Run {
  CodePoint first;
  CodePoint last;
  std::int32_t value;
};

#include "unicode_table.inc"

}  // namespace

const CharacterTable& CharacterTable::instance() {
  static const CharacterTable table;
  return table;
}

CharacterTable::CharacterTable() {
  std::vector<std::int32_t> all(0x110000);
  for (const Run& run : kKinds) {
    for (CodePoint c = run.first; c <= run.last; ++c) all[c] = run.value;
  }
  for (const Run& run : kFolds) {
    for (CodePoint c = run.first; c <= run.last; ++c) all[c] += run.value * 4;
  }
  // Most pages are equal to another one.
  std::map<std::vector<std::int32_t>, std::uint16_t> known;
  for (std::size_t page = 0; page < pages_.size(); ++page) {
    const auto start = all.begin() + static_cast<std::ptrdiff_t>(page << 8);
    const auto number = static_cast<std::uint16_t>(known.size());
    const auto [place, is_new] = known.emplace(std::vector<std::int32_t>(start, start + 256), number);
    if (is_new) entries_.insert(entries_.end(), start, start + 256);
    pages_[page] = place->second;
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
