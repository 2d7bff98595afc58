#include "bpe/merge.hpp"

#include <algorithm>
#include <array>
#include <functional>

namespace vikhr {
namespace {

constexpr std::uint32_t kEnd = ~std::uint32_t{0};

// A pair's rank and, below it, its place: the least of these is the pair to merge next.
constexpr std::int32_t kNoPair = INT32_MAX;
constexpr unsigned kPlaceBits = 6;

std::int32_t least(const std::int32_t* orders, std::size_t count) {
  constexpr std::size_t kWidth = 8;  // `count` is a multiple of it
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

}  // namespace

Merger::Pair Merger::merge(std::string_view text, std::vector<Symbol>& symbols) {
  if (!text.empty() && text.size() <= kShort) {
    symbols.resize(kShort);
    std::size_t count = 0;
    const Pair last = merge_short(text, symbols.data(), count);
    symbols.resize(count);
    return last;
  }
  symbols.clear();
  for (std::size_t at = 0; at < text.size();) {
    const Character character = decode_valid_character(text.data() + at);
    symbols.push_back(vocabulary_.symbol(character.code_point).symbol);
    at += character.length;
  }
  return merge_long(symbols);
}

// Places never move: a merged pair keeps the left one's, the right one's stays empty. Before the
// first place and behind the last is one that merges with nothing.
Merger::Pair Merger::merge_short(std::string_view text, Symbol* symbols,
                                 std::size_t& count) const {
  std::array<CharacterSymbol, kShort + 2> characters;
  std::array<Symbol, kShort + 2> at;
  std::array<std::uint8_t, kShort + 2> before;
  std::array<std::uint8_t, kShort + 2> after;
  std::array<Symbol, kShort + 8> results;  // of the pair that starts at a place
  std::array<std::int32_t, kShort + 8> orders;

  std::size_t end = 1;
  for (std::size_t i = 0; i < text.size(); ++end) {
    const Character character = decode_valid_character(text.data() + i);
    characters[end] = vocabulary_.symbol(character.code_point);
    i += character.length;
  }
  const auto order_of = [&](Symbol result, std::size_t place) {
    return static_cast<std::int32_t>(vocabulary_.rank(result) << kPlaceBits | place);
  };
  const std::size_t width = (end + 8) & ~std::size_t{7};
  for (std::size_t i = end - 1; i < width; ++i) orders[i] = kNoPair;
  orders[0] = kNoPair;
  at[0] = at[end] = Vocabulary::kNoCharacter;
  for (std::size_t i = 1; i < end; ++i) {
    at[i] = characters[i].symbol;
    before[i] = static_cast<std::uint8_t>(i - 1);
    after[i] = static_cast<std::uint8_t>(i + 1);
    if (i + 1 < end) {
      results[i] = vocabulary_.merged(characters[i], characters[i + 1]);
      orders[i] = order_of(results[i], i);
    }
  }

  Pair last{};
  const std::int32_t limit = order_of(vocabulary_.no_merge(), 0);
  for (;;) {
    const std::int32_t best = least(orders.data(), width);
    if (best >= limit) break;
    const std::size_t place = static_cast<std::size_t>(best) & ((1u << kPlaceBits) - 1);
    const std::size_t right = after[place];
    const std::size_t next = after[right];
    const std::size_t previous = before[place];
    last = {at[place], at[right]};
    at[place] = results[place];
    after[place] = static_cast<std::uint8_t>(next);
    before[next] = static_cast<std::uint8_t>(place);
    orders[right] = kNoPair;
    results[place] = vocabulary_.merged(at[place], at[next]);
    results[previous] = vocabulary_.merged(at[previous], at[place]);
    orders[place] = order_of(results[place], place);
    orders[previous] = order_of(results[previous], previous);
  }
  count = 0;
  for (std::size_t i = 1; i < end; i = after[i]) symbols[count++] = at[i];
  return last;
}

// Looks at the pair that starts at `node`, and puts it at the heap's end where it can merge.
bool Merger::queue(std::uint32_t node) {
  Node& left = nodes_[node];
  left.result = left.next == kEnd ? vocabulary_.no_merge()
                                  : vocabulary_.merged(left.symbol, nodes_[left.next].symbol);
  if (left.result == vocabulary_.no_merge()) return false;
  heap_.push_back(static_cast<std::uint64_t>(vocabulary_.rank(left.result)) << 32 | node);
  return true;
}

Merger::Pair Merger::merge_long(std::vector<Symbol>& symbols) {
  Pair last{};
  const auto count = static_cast<std::uint32_t>(symbols.size());
  const auto later = std::greater<>();
  nodes_.resize(count);
  heap_.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    nodes_[i] = {symbols[i], i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1,
                 vocabulary_.no_merge()};
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
    if (vocabulary_.rank(left.result) != top >> 32) continue;
    Node& right = nodes_[left.next];
    last = {left.symbol, right.symbol};
    left.symbol = left.result;
    left.next = right.next;
    right.result = vocabulary_.no_merge();
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
