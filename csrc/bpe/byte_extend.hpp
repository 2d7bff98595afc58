// Continues the merges of a byte-level BPE vocabulary on new text: its tokens, and the order of its
// merges, stay; new merges come after all of them.
//
// Encoding applies merges in their order. So what the base's merges make of a word comes first and
// stays as it was, and each new merge then joins its pair wherever it still stands side by side;
// that is also how a word is segmented here at any time. Text whose ends no merge crosses is merged
// in the same way wherever it stands: at any time one pair alone spells it, and a new token is what
// its own bytes are encoded to. Only what the base calls a token but can't merge can be spelt
// otherwise; such a pair is never merged, so that a text of which no new token is a part keeps its
// segmentation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/hash.hpp"
#include "bpe/extend_words.hpp"
#include "bpe/piece_rules.hpp"

namespace vikhr {

class ByteExtender {
 public:
  using Token = std::int32_t;  // index in `tokens`, then in what was learnt

  // `tokens` are the different bytes of all tokens. `merges` are different pairs of them, in order,
  // whose bytes together are a token. With `keeps_whole`, a word that is a token is not merged.
  ByteExtender(std::vector<std::string> tokens, const std::vector<std::pair<Token, Token>>& merges,
               PieceRules rules, bool keeps_whole);

  // To be called once, before `learn`.
  void add_words(const WordCounts& words);

  struct Learnt {
    std::string left;  // the bytes of the two tokens
    std::string right;
    std::uint64_t count;  // occurrences in the corpus when it was chosen
  };
  // Up to `count` further merges, each to a new token, most frequent first; of equals the shorter,
  // then the one earlier by bytes. Fewer where nothing occurs twice any more.
  std::vector<Learnt> learn(std::size_t count);

 private:
  static constexpr Token kNone = -1;  // a byte that is no token
  static constexpr std::uint32_t kUnranked = ~std::uint32_t{0};

  // Two tokens side by side.
  struct Pair {
    Token left;
    Token right;
    Token merged = kNone;
    std::uint32_t rank = kUnranked;  // of its merge
    std::uint64_t count = 0;
    std::vector<std::uint32_t> words;  // where it may stand
    std::string bytes;                 // empty where it can't become a token
  };
  struct Word {
    std::uint64_t count;
    std::size_t start;  // in `tokens_of_words_`
    std::uint32_t length;
  };
  struct Candidate {
    std::uint64_t count;  // when it was put on the heap
    std::uint32_t pair;
  };

  const std::string& bytes_of(Token token) const {
    return tokens_[static_cast<std::size_t>(token)];
  }
  bool may_be_token(std::string_view bytes) const;
  std::uint32_t find_or_add(Token left, Token right);
  std::uint32_t rank_of(Token left, Token right) const;
  void settle(Word& word);
  void list_pairs(const Word& word, std::size_t first, std::size_t last,
                  std::vector<std::uint32_t>& pairs);
  void list_pairs_around(const Word& word, std::size_t width, std::vector<std::uint32_t>& pairs);
  void merge(std::uint32_t pair, std::uint32_t index);
  bool is_after(const Candidate& a, const Candidate& b) const;
  void push(std::uint32_t pair);

  PieceRules rules_;
  bool keeps_whole_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string, Token> token_of_;  // of the base
  WordMap<std::uint32_t> pair_of_;  // left << 32 | right -> index in `pairs_`
  std::vector<Pair> pairs_;
  std::vector<std::uint32_t> merges_;  // by rank, indices in `pairs_`
  std::vector<Word> words_;
  std::vector<Token> tokens_of_words_;
  std::vector<Candidate> heap_;
  std::vector<std::uint32_t> risen_;                    // pairs whose count grew in this step
  std::vector<std::uint32_t> places_, before_, after_;  // buffers of merge
  std::vector<std::uint32_t> ranks_;                    // buffer of settle
};

}  // namespace vikhr
