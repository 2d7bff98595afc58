#include "text/split_classes.hpp"

#include <algorithm>
#include <map>

namespace vikhr {
namespace {

struct Run {
  CodePoint first, last;
  std::uint8_t value;
};

#include "text/split_table.inc"

}  // namespace

const SplitClasses& SplitClasses::instance() {
  static const SplitClasses classes;
  return classes;
}

// Most pages are equal to another one.
SplitClasses::SplitClasses() {
  using Page = std::array<std::uint8_t, 256>;
  std::vector<Page> pages(pages_.size());
  for (const Run& run : kClasses) {
    for (CodePoint c = run.first; c <= run.last; ++c) pages[c >> 8][c & 0xFF] = run.value;
  }
  std::map<Page, std::uint16_t> known;
  for (std::size_t number = 0; number < pages.size(); ++number) {
    const auto [place, is_new] = known.emplace(pages[number], static_cast<std::uint16_t>(known.size()));
    if (is_new) entries_.insert(entries_.end(), pages[number].begin(), pages[number].end());
    pages_[number] = place->second;
  }
  for (std::size_t page = 0; page < short_.size() >> 8; ++page) {
    std::copy(pages[page].begin(), pages[page].end(), short_.begin() + static_cast<std::ptrdiff_t>(page << 8));
  }
}

}  // namespace vikhr
