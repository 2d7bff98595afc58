// The longest of some symbols that a text starts with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace vikhr {

using Id = std::int32_t;

// A trie over bytes.
class PrefixMatcher {
 public:
  void add(std::string_view symbol, Id id);
  bool empty() const { return nodes_.size() == 1; }

  struct Match {
    std::size_t length = 0;  // 0 where no symbol starts here
    Id id = -1;
  };
  // The longest symbol that `text` starts with.
  Match match(std::string_view text) const;

 private:
  struct Node {
    Id id = -1;
    std::uint32_t first_child = 0;  // children of a node: a list through `sibling`
    std::uint32_t sibling = 0;
    unsigned char byte = 0;
  };
  std::uint32_t child(std::uint32_t node, unsigned char byte) const;

  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::vector<std::uint32_t> roots_ = std::vector<std::uint32_t>(256);  // the root's children
};

}  // namespace vikhr
