// Byte-pair merging of a run of symbols: always the pair of lowest rank, the leftmost of equals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "bpe/vocabulary.hpp"

namespace vikhr {

class Merger {
 public:
  static constexpr std::size_t kShort = 32;  // characters of a short text

  explicit Merger(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  struct Pair {
    Symbol left;
    Symbol right;
  };

  // Merges the characters of `text` to `symbols`. Returns the last pair merged; meaningless where
  // none was.
  Pair merge(std::string_view text, std::vector<Symbol>& symbols);

  // The same for 1 to kShort bytes, to an array of kShort places; `count` gets how many are left.
  Pair merge_short(std::string_view text, Symbol* symbols, std::size_t& count) const;

  // Gives back the memory of a huge text.
  void shrink();

 private:
  struct Node {
    Symbol symbol;
    std::uint32_t previous;
    std::uint32_t next;
    Symbol result;  // of merging with the next node
  };

  Pair merge_long(std::vector<Symbol>& symbols);
  bool queue(std::uint32_t node);

  const Vocabulary& vocabulary_;
  std::vector<Node> nodes_;
  std::vector<std::uint64_t> heap_;
};

}  // namespace vikhr
