// The vocabulary of a byte-level BPE tokenizer as tables: which token a byte is, and which two neighbours merge into what
// and how early. Merges stand in a list of pairs, the first of which goes first, as in a tokenizer.json.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bpe/pair_table.hpp"
#include "bpe/prefix_matcher.hpp"

namespace vikhr {

class ByteVocabulary {
 public:
  struct Merge {
    Id left, right, result;
  };

  // `tokens`: the bytes and the id of each. Where a pair stands in `merges` twice, the last place counts. `takes_whole`: a
  // word that is a token is that token, whatever merges make of it. ModelError where the tables have no room.
  ByteVocabulary(std::vector<std::pair<std::string, Id>> tokens, const std::vector<Merge>& merges, bool takes_whole);
  ByteVocabulary(const ByteVocabulary&) = delete;  // `whole_` points into `tokens_`
  ByteVocabulary& operator=(const ByteVocabulary&) = delete;

  // The token that a whole word is taken as; -1 where merges decide.
  Id whole(std::string_view word) const {
    if (whole_.empty()) return -1;
    const auto found = whole_.find(word);
    return found == whole_.end() ? -1 : found->second;
  }

  // As a Merger's table: symbols are ids, units are bytes, a merge is its place in the list.
  struct Unit {
    Symbol symbol;
    std::uint32_t byte;
  };
  static constexpr std::size_t kShort = 62;
  static constexpr Symbol kNoUnit = (1u << 21) - 1;
  bool read_unit(const char* text, Unit& unit, unsigned& length) const {
    length = 1;
    const auto byte = static_cast<unsigned char>(*text);
    if (byte_ids_[byte] < 0) return false;
    unit = {static_cast<Symbol>(byte_ids_[byte]), byte};
    return true;
  }
  Symbol merged(Symbol left, Symbol right) const { return merges_->find(left, right); }
  Symbol merged(const Unit& left, const Unit& right) const { return byte_merges_[left.byte << 8 | right.byte]; }
  Symbol no_merge() const { return static_cast<Symbol>(results_.size()); }
  std::uint32_t rank(Symbol merge) const { return merge; }
  Symbol symbol_of(const Unit& unit) const { return unit.symbol; }
  Symbol symbol_of(Symbol merge) const { return results_[merge]; }

 private:
  std::vector<std::pair<std::string, Id>> tokens_;
  std::array<Id, 256> byte_ids_;
  std::vector<Symbol> results_;  // by merge
  std::optional<PairTable> merges_;
  std::vector<Symbol> byte_merges_;  // of two bytes
  std::unordered_map<std::string_view, Id> whole_;
};

}  // namespace vikhr
