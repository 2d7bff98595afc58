// Continues the training of a BPE vocabulary on new text: its pieces and their order stay, new
// pieces come after all of them.
//
// The segmentation that every word has at any time is the one that encoding with the pieces so far
// gives. Encoding joins whatever two neighbours spell a piece, not only the pair that the piece was
// learnt from; so candidates are counted by the text they spell, over all pairs that spell it, and
// after each new piece its words are joined on until nothing joins, old pieces included. Every new
// piece thus stands in the encoding of some word of the corpus, and is reachable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "bpe/extend_words.hpp"
#include "bpe/piece_rules.hpp"
#include "base/hash.hpp"

namespace vikhr {

struct ScoredPiece {
  std::string text;  // ▁ as a space
  double score;      // of two possible merges the higher score goes first, the leftmost of equals
};

class Extender {
 public:
  // `base` holds every piece that encoding can join or start from, single characters included.
  // `first_score` is below the scores of all pieces that new ones must come after.
  Extender(const std::vector<ScoredPiece>& base, CharacterClasses classes,
           std::size_t max_characters, double first_score);

  // To be called once, before `learn`.
  void add_words(const WordCounts& words);

  struct Learnt {
    std::string text;
    std::uint64_t count;  // occurrences in the corpus when it was chosen
  };
  // Up to `count` further pieces, most frequent first; fewer where nothing occurs twice any more.
  // The n-th of all calls has the score first_score - n.
  std::vector<Learnt> learn(std::size_t count);

 private:
  using Symbol = std::int32_t;  // index of a text; kNone for a character that is no piece
  static constexpr Symbol kNone = -1;

  // A text that is a piece, or that two neighbouring symbols spell.
  struct Text {
    std::string text;
    double score = 0;
    std::uint64_t count = 0;           // of neighbouring symbols that spell it
    std::vector<std::uint32_t> words;  // where they may stand
    std::uint32_t characters = 0;
    bool is_piece = false;
    bool may_be_piece = false;
  };
  struct Word {
    std::uint64_t count;
    std::size_t start;  // in `symbols_`
    std::uint32_t length;
  };
  struct Candidate {
    std::uint64_t count;  // when it was put on the heap
    Symbol text;
  };
  using Parts = std::vector<std::pair<std::string, std::uint64_t>>;

  Symbol find_or_add(std::string_view text);
  Symbol spelt_by(Symbol left, Symbol right);
  void segment_words(const Parts& parts);
  void settle(Word& word);
  void learn_from(std::uint32_t word);
  void list_neighbours(const Word& word, std::vector<Symbol>& spelt);
  bool is_after(const Candidate& a, const Candidate& b) const;
  void push(Symbol text);

  PieceRules rules_;
  double first_score_;
  std::vector<Text> texts_;
  std::unordered_map<std::string, Symbol> symbols_of_;
  std::unordered_set<std::uint64_t> base_neighbours_;  // characters side by side in a base piece
  WordMap<Symbol> spelt_;                              // left << 32 | right -> text
  std::vector<Word> words_;
  std::vector<Symbol> symbols_;  // of all words
  std::vector<Candidate> heap_;
  std::size_t learnt_ = 0;
  std::vector<Symbol> risen_;           // texts whose count grew in this step
  std::vector<Symbol> before_, after_;  // buffers of learn_from
};

}  // namespace vikhr
