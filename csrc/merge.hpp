// Byte-pair merging of a run of symbols: always the pair of lowest rank, the leftmost of equals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vocabulary.hpp"

namespace vikhr {

class Merger {
 public:
  explicit Merger(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  struct Pair {
    Symbol left;
    Symbol right;
  };

  // Merges `symbols` in place. Returns the last pair merged; meaningless where none was.
  Pair merge(std::vector<Symbol>& symbols);

  // Gives back the memory of a huge text.
  void shrink();

 private:
  struct Node {
    Symbol symbol;
    std::uint32_t previous;
    std::uint32_t next;
    Merge merge;  // with the next node
  };

  Pair merge_short(std::vector<Symbol>& symbols);
  Pair merge_long(std::vector<Symbol>& symbols);
  bool queue(std::uint32_t node);

  const Vocabulary& vocabulary_;
  std::vector<Node> nodes_;
  std::vector<std::uint64_t> heap_;
};

}  // namespace vikhr
