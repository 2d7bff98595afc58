#include "bpe/prefix_matcher.hpp"

namespace vikhr {

void PrefixMatcher::add(std::string_view symbol, Id id) {
  std::uint32_t node = 0;
  for (const char character : symbol) {
    const auto byte = static_cast<unsigned char>(character);
    std::uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<std::uint32_t>(nodes_.size());
      Node added;
      added.byte = byte;
      if (node == 0) {
        roots_[byte] = next;
      } else {
        added.sibling = nodes_[node].first_child;
        nodes_[node].first_child = next;
      }
      nodes_.push_back(added);
    }
    node = next;
  }
  nodes_[node].id = id;
}

std::uint32_t PrefixMatcher::child(std::uint32_t node, unsigned char byte) const {
  if (node == 0) return roots_[byte];
  std::uint32_t next = nodes_[node].first_child;
  while (next != 0 && nodes_[next].byte != byte) next = nodes_[next].sibling;
  return next;
}

PrefixMatcher::Match PrefixMatcher::match(std::string_view text) const {
  constexpr int kMaxPrefixes = 64;  // SentencePiece looks at no more, shortest first
  Match longest;
  int found = 0;
  std::uint32_t node = 0;
  for (std::size_t i = 0; i < text.size() && found < kMaxPrefixes; ++i) {
    node = child(node, static_cast<unsigned char>(text[i]));
    if (node == 0) break;
    if (nodes_[node].id >= 0) {
      longest = {i + 1, nodes_[node].id};
      ++found;
    }
  }
  return longest;
}

}  // namespace vikhr
