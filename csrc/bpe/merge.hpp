// Byte-pair merging of a run of symbols: always the pair of lowest rank, the leftmost of equals.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "bpe/pair_table.hpp"

namespace vikhr {

// The least of `count` values, a multiple of 8.
inline std::int32_t least(const std::int32_t* orders, std::size_t count) {
  constexpr std::size_t kWidth = 8;
  std::array<std::int32_t, kWidth> lanes;
  for (std::size_t i = 0; i < kWidth; ++i) lanes[i] = orders[i];
  for (std::size_t at = kWidth; at < count; at += kWidth) {
    for (std::size_t i = 0; i < kWidth; ++i) lanes[i] = std::min(lanes[i], orders[at + i]);
  }
  for (std::size_t width = kWidth / 2; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) lanes[i] = std::min(lanes[i], lanes[i + width]);
  }
  return lanes[0];
}

// What merges is up to the table, a vocabulary's:
//   Unit           a symbol as text has it, and kNoUnit, which merges with nothing
//   read_unit      the unit at a place of a text, and its length in bytes; false where it has no symbol and is left out
//   merged         the merge of two neighbours, symbols or units; no_merge() where they don't
//   rank           of a merge, lower first
//   symbol_of      what a merge, or a unit, makes
template <typename Table>
class Merger {
 public:
  static constexpr std::size_t kShort = Table::kShort;  // bytes of a short text

  explicit Merger(const Table& table) : table_(table) {}

  struct Pair {
    Symbol left;
    Symbol right;
  };

  // Merges the units of `text` to `symbols`. Returns the last pair merged; meaningless where none was.
  Pair merge(std::string_view text, std::vector<Symbol>& symbols) {
    if (!text.empty() && text.size() <= kShort) {
      symbols.resize(kShort);
      std::size_t count = 0;
      const Pair last = merge_short(text, symbols.data(), count);
      symbols.resize(count);
      return last;
    }
    symbols.clear();
    for (std::size_t at = 0; at < text.size();) {
      typename Table::Unit unit;
      unsigned length = 0;
      if (table_.read_unit(text.data() + at, unit, length)) symbols.push_back(table_.symbol_of(unit));
      at += length;
    }
    return merge_long(symbols);
  }

  // The same for 1 to kShort bytes, to an array of kShort places; `count` gets how many are left.
  Pair merge_short(std::string_view text, Symbol* symbols, std::size_t& count) const;

  // Gives back the memory of a huge text.
  void shrink() {
    std::vector<Node>().swap(nodes_);
    for (std::vector<std::uint64_t>* pairs : {&sorted_, &later_, &heap_}) std::vector<std::uint64_t>().swap(*pairs);
  }

 private:
  static constexpr std::uint32_t kEnd = ~std::uint32_t{0};
  // A pair's rank and, below it, its place: the least of these is the pair to merge next.
  static constexpr std::int32_t kNoPair = INT32_MAX;
  static constexpr unsigned kPlaceBits = 6;
  static_assert(kShort + 2 <= std::size_t{1} << kPlaceBits);

  struct Node {
    Symbol symbol;
    std::uint32_t previous;
    std::uint32_t next;
    Symbol result;  // of merging with the next node
  };

  Pair merge_long(std::vector<Symbol>& symbols);
  void queue(std::uint32_t node);

  const Table& table_;
  std::vector<Node> nodes_;
  // Pairs that may merge, as rank and place: those at hand, those that came since and are due before the last of them,
  // and those that are due after all of them.
  std::vector<std::uint64_t> sorted_, heap_, later_;
};

// Places never move: a merged pair keeps the left one's, the right one's stays empty. Before the
// first place and behind the last is one that merges with nothing.
template <typename Table>
typename Merger<Table>::Pair Merger<Table>::merge_short(std::string_view text, Symbol* symbols,
                                                        std::size_t& count) const {
  std::array<typename Table::Unit, kShort + 2> units;
  std::array<Symbol, kShort + 2> at;
  std::array<std::uint8_t, kShort + 2> before;
  std::array<std::uint8_t, kShort + 2> after;
  std::array<Symbol, kShort + 8> results;  // of the pair that starts at a place
  std::array<std::int32_t, kShort + 10> orders;

  std::size_t end = 1;
  for (std::size_t i = 0; i < text.size();) {
    unsigned length = 0;
    if (table_.read_unit(text.data() + i, units[end], length)) ++end;
    i += length;
  }
  const auto order_of = [&](Symbol result, std::size_t place) {
    return static_cast<std::int32_t>(table_.rank(result) << kPlaceBits | place);
  };
  const std::size_t width = (end + 8) & ~std::size_t{7};
  for (std::size_t i = end - 1; i < width; ++i) orders[i] = kNoPair;
  orders[0] = kNoPair;
  at[0] = at[end] = Table::kNoUnit;
  for (std::size_t i = 1; i < end; ++i) {
    at[i] = table_.symbol_of(units[i]);
    before[i] = static_cast<std::uint8_t>(i - 1);
    after[i] = static_cast<std::uint8_t>(i + 1);
    if (i + 1 < end) {
      results[i] = table_.merged(units[i], units[i + 1]);
      orders[i] = order_of(results[i], i);
    }
  }

  Pair last{};
  const std::int32_t limit = order_of(table_.no_merge(), 0);
  for (;;) {
    const std::int32_t best = least(orders.data(), width);
    if (best >= limit) break;
    const std::size_t place = static_cast<std::size_t>(best) & ((1u << kPlaceBits) - 1);
    const std::size_t right = after[place];
    const std::size_t next = after[right];
    const std::size_t previous = before[place];
    last = {at[place], at[right]};
    at[place] = table_.symbol_of(results[place]);
    after[place] = static_cast<std::uint8_t>(next);
    before[next] = static_cast<std::uint8_t>(place);
    orders[right] = kNoPair;
    results[place] = table_.merged(at[place], at[next]);
    results[previous] = table_.merged(at[previous], at[place]);
    orders[place] = order_of(results[place], place);
    orders[previous] = order_of(results[previous], previous);
  }
  count = 0;
  for (std::size_t i = 1; i < end; i = after[i]) symbols[count++] = at[i];
  return last;
}

// Looks at the pair that starts at `node`, and puts it where it is due if it can merge: behind all that are sorted, as
// in a run of one character, or on the heap.
template <typename Table>
void Merger<Table>::queue(std::uint32_t node) {
  Node& left = nodes_[node];
  left.result = left.next == kEnd ? table_.no_merge() : table_.merged(left.symbol, nodes_[left.next].symbol);
  if (left.result == table_.no_merge()) return;
  const std::uint64_t pair = static_cast<std::uint64_t>(table_.rank(left.result)) << 32 | node;
  if (sorted_.empty() || pair > sorted_.back()) {
    later_.push_back(pair);
  } else {
    heap_.push_back(pair);
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }
}

template <typename Table>
typename Merger<Table>::Pair Merger<Table>::merge_long(std::vector<Symbol>& symbols) {
  Pair last{};
  const auto count = static_cast<std::uint32_t>(symbols.size());
  if (count == 0) return last;
  nodes_.resize(count);
  for (std::vector<std::uint64_t>* pairs : {&sorted_, &later_, &heap_}) pairs->clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    nodes_[i] = {symbols[i], i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1, table_.no_merge()};
  }
  for (std::uint32_t i = 0; i < count; ++i) queue(i);

  for (std::size_t next = 0;;) {
    std::uint64_t least;
    if (!heap_.empty() && (next == sorted_.size() || heap_.front() < sorted_[next])) {
      least = heap_.front();
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      heap_.pop_back();
    } else if (next < sorted_.size()) {
      least = sorted_[next++];
    } else if (!later_.empty()) {
      sorted_.swap(later_);
      later_.clear();
      std::sort(sorted_.begin(), sorted_.end());
      next = 0;
      continue;
    } else {
      break;
    }
    const auto at = static_cast<std::uint32_t>(least);
    Node& left = nodes_[at];
    // A pair that has changed since: its rank differs, or the new pair is due at the same moment.
    if (table_.rank(left.result) != least >> 32) continue;
    Node& right = nodes_[left.next];
    last = {left.symbol, right.symbol};
    left.symbol = table_.symbol_of(left.result);
    left.next = right.next;
    right.result = table_.no_merge();
    if (left.next != kEnd) nodes_[left.next].previous = at;
    for (const std::uint32_t changed : {left.previous, at}) {
      if (changed != kEnd) queue(changed);
    }
  }

  symbols.clear();
  for (std::uint32_t node = 0; node != kEnd; node = nodes_[node].next) {
    symbols.push_back(nodes_[node].symbol);
  }
  return last;
}

}  // namespace vikhr
