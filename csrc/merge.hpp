// Byte-pair merging of a run of symbols: always the pair of lowest rank, the leftmost of equals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vocabulary.hpp"

namespace vikhr {

// How a merged UNUSED piece was last put together, for splitting it again.
struct Parts {
  Symbol left = 0;
  Symbol right = 0;
};

class Merger {
 public:
  explicit Merger(const Vocabulary& vocabulary);

  // Merges `symbols` in place.
  void merge(std::vector<Symbol>& symbols);

  // Gives back the memory of a huge text.
  void shrink();

  // The parts of an UNUSED piece that a merge of this or an earlier run put together; nullptr for
  // one that is a single character.
  const Parts* parts(Symbol unused) const;

 private:
  struct Node {
    Symbol symbol;
    std::uint32_t previous;
    std::uint32_t next;
    Merge merge;  // with the next node
  };

  void merge_short(std::vector<Symbol>& symbols);
  void merge_long(std::vector<Symbol>& symbols);
  void consider(std::uint32_t node);
  Merge find(Symbol left, Symbol right);

  const Vocabulary& vocabulary_;
  bool records_parts_ = false;
  WordMap<std::uint32_t> unused_;  // UNUSED piece to its place in parts_
  std::vector<Parts> parts_;
  std::vector<Merge> merges_;
  std::vector<Node> nodes_;
  std::vector<std::uint64_t> heap_;
};

}  // namespace vikhr
