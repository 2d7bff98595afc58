#include "merge.hpp"

#include <algorithm>
#include <array>
#include <functional>

namespace vikhr {
namespace {

// Up to here a linear search for the best pair beats a heap.
constexpr std::size_t kShort = 48;
constexpr std::uint32_t kEnd = ~std::uint32_t{0};

}  // namespace

Merger::Pair Merger::merge(std::vector<Symbol>& symbols) {
  return symbols.size() <= kShort ? merge_short(symbols) : merge_long(symbols);
}

Merger::Pair Merger::merge_short(std::vector<Symbol>& symbols) {
  Pair last{};
  std::size_t count = symbols.size();
  std::array<Merge, kShort> merges;  // of each symbol with the next
  for (std::size_t i = 0; i + 1 < count; ++i) {
    merges[i] = vocabulary_.merge(symbols[i], symbols[i + 1]);
  }
  while (count > 1) {
    std::size_t at = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[at].rank) at = i;
    }
    if (merges[at].rank == Merge::kNone) break;
    last = {symbols[at], symbols[at + 1]};
    symbols[at] = merges[at].result;
    --count;
    for (std::size_t i = at + 1; i < count; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i - 1] = merges[i];
    }
    if (at > 0) merges[at - 1] = vocabulary_.merge(symbols[at - 1], symbols[at]);
    if (at + 1 < count) merges[at] = vocabulary_.merge(symbols[at], symbols[at + 1]);
  }
  symbols.resize(count);
  return last;
}

// Looks at the pair that starts at `node`, and puts it at the heap's end where it can merge.
bool Merger::queue(std::uint32_t node) {
  Node& left = nodes_[node];
  left.merge =
      left.next == kEnd ? Merge{} : vocabulary_.merge(left.symbol, nodes_[left.next].symbol);
  if (left.merge.rank == Merge::kNone) return false;
  heap_.push_back(static_cast<std::uint64_t>(left.merge.rank) << 32 | node);
  return true;
}

Merger::Pair Merger::merge_long(std::vector<Symbol>& symbols) {
  Pair last{};
  const auto count = static_cast<std::uint32_t>(symbols.size());
  const auto later = std::greater<>();
  nodes_.resize(count);
  heap_.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    nodes_[i] = {symbols[i], i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1, {}};
  }
  for (std::uint32_t i = 0; i < count; ++i) queue(i);
  std::make_heap(heap_.begin(), heap_.end(), later);

  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    const std::uint64_t top = heap_.back();
    heap_.pop_back();
    const auto at = static_cast<std::uint32_t>(top);
    Node& left = nodes_[at];
    // A pair that has changed since: its rank differs, or the new pair is due at the same moment.
    if (left.merge.rank != top >> 32) continue;
    Node& right = nodes_[left.next];
    last = {left.symbol, right.symbol};
    left.symbol = left.merge.result;
    left.next = right.next;
    right.merge = {};
    if (left.next != kEnd) nodes_[left.next].previous = at;
    for (const std::uint32_t changed : {left.previous, at}) {
      if (changed != kEnd && queue(changed)) std::push_heap(heap_.begin(), heap_.end(), later);
    }
  }

  symbols.clear();
  for (std::uint32_t node = 0; node != kEnd; node = nodes_[node].next) {
    symbols.push_back(nodes_[node].symbol);
  }
  return last;
}

void Merger::shrink() {
  std::vector<Node>().swap(nodes_);
  std::vector<std::uint64_t>().swap(heap_);
}

}  // namespace vikhr
