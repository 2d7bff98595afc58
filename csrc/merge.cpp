#include "merge.hpp"

#include <algorithm>
#include <functional>

namespace vikhr {
namespace {

// Up to here a linear search for the best pair beats a heap.
constexpr std::size_t kShort = 48;
constexpr std::uint32_t kEnd = ~std::uint32_t{0};

}  // namespace

Merger::Merger(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
  for (Id id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.piece(id).type != PieceType::unused) continue;
    unused_.insert(static_cast<std::uint64_t>(id), static_cast<std::uint32_t>(parts_.size()));
    parts_.push_back({kFrozen, kFrozen});
  }
  records_parts_ = !parts_.empty();
}

const Parts* Merger::parts(Symbol unused) const {
  const std::uint32_t* place = unused_.find(unused);
  return place == nullptr || parts_[*place].left == kFrozen ? nullptr : &parts_[*place];
}

// The merge of two neighbours. Looking is enough for SentencePiece to note the parts.
Merge Merger::find(Symbol left, Symbol right) {
  const Merge merge = vocabulary_.merge(left, right);
  if (records_parts_ && merge.rank != Merge::kNone) {
    const std::uint32_t* place = unused_.find(merge.result);
    if (place != nullptr) parts_[*place] = {left, right};
  }
  return merge;
}

void Merger::merge(std::vector<Symbol>& symbols) {
  if (symbols.size() <= kShort) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
}

void Merger::merge_short(std::vector<Symbol>& symbols) {
  if (symbols.size() < 2) return;
  merges_.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
    merges_.push_back(find(symbols[i], symbols[i + 1]));
  }
  while (!merges_.empty()) {
    const auto best = std::min_element(
        merges_.begin(), merges_.end(),
        [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (best->rank == Merge::kNone) return;
    const auto at = static_cast<std::size_t>(best - merges_.begin());
    symbols[at] = best->result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    merges_.erase(best);
    if (at > 0) merges_[at - 1] = find(symbols[at - 1], symbols[at]);
    if (at < merges_.size()) merges_[at] = find(symbols[at], symbols[at + 1]);
  }
}

// Looks at the pair that starts at `node`, and queues it.
void Merger::consider(std::uint32_t node) {
  Node& left = nodes_[node];
  left.merge = left.next == kEnd ? Merge{} : find(left.symbol, nodes_[left.next].symbol);
  if (left.merge.rank == Merge::kNone) return;
  heap_.push_back(static_cast<std::uint64_t>(left.merge.rank) << 32 | node);
}

void Merger::merge_long(std::vector<Symbol>& symbols) {
  const auto count = static_cast<std::uint32_t>(symbols.size());
  nodes_.resize(count);
  heap_.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    nodes_[i] = {symbols[i], i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1, {}};
  }
  for (std::uint32_t i = 0; i < count; ++i) consider(i);
  const auto later = std::greater<>();
  std::make_heap(heap_.begin(), heap_.end(), later);
  const auto queue = [&](std::uint32_t node) {
    const std::size_t before = heap_.size();
    consider(node);
    if (heap_.size() != before) std::push_heap(heap_.begin(), heap_.end(), later);
  };

  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    const std::uint64_t top = heap_.back();
    heap_.pop_back();
    const auto at = static_cast<std::uint32_t>(top);
    Node& left = nodes_[at];
    // A pair that has changed since: its rank differs, or the new pair is due at the same moment.
    if (left.merge.rank != top >> 32) continue;
    Node& right = nodes_[left.next];
    left.symbol = left.merge.result;
    left.next = right.next;
    right.merge = {};
    if (left.next != kEnd) nodes_[left.next].previous = at;
    if (left.previous != kEnd) queue(left.previous);
    queue(at);
  }

  symbols.clear();
  for (std::uint32_t node = 0; node != kEnd; node = nodes_[node].next) {
    symbols.push_back(nodes_[node].symbol);
  }
}

void Merger::shrink() {
  constexpr std::size_t kKept = 1 << 16;
  if (nodes_.capacity() > kKept) std::vector<Node>().swap(nodes_);
  if (heap_.capacity() > kKept) std::vector<std::uint64_t>().swap(heap_);
}

}  // namespace vikhr
