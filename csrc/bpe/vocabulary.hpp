// A SentencePiece BPE vocabulary turned into tables: which symbol a character is, which two
// neighbouring symbols merge into what and how early, and which text can never be merged across.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/hash.hpp"
#include "bpe/model.hpp"
#include "bpe/pair_table.hpp"
#include "bpe/prefix_matcher.hpp"
#include "text/scan.hpp"
#include "text/utf8.hpp"

namespace vikhr {

// The symbol of a character, and its number among the common characters: 0 where it is none.
struct CharacterSymbol {
  Symbol symbol;
  std::uint32_t common;
};

class Vocabulary {
 public:
  // ModelError where the model is not one that BPE with identity normalisation can encode.
  explicit Vocabulary(Model model);
  Vocabulary(const Vocabulary&) = delete;  // `ids_` points into `model_`
  Vocabulary& operator=(const Vocabulary&) = delete;

  const Model& model() const { return model_; }
  Id size() const { return static_cast<Id>(model_.pieces.size()); }
  const Piece& piece(Id id) const { return model_.pieces[static_cast<std::size_t>(id)]; }
  Id find(std::string_view piece) const;  // -1 where there is none

  bool is_unused(Id id) const { return has_unused_ && piece(id).type == PieceType::unused; }
  Id unknown_id() const { return unknown_id_; }  // what encoding emits
  Id special_id(std::string_view piece, PieceType type) const;  // -1 unless of that type
  Id byte_id(unsigned char byte) const { return byte_ids_[byte]; }
  int byte_value(Id id) const;  // of a byte piece

  // The symbol of a character. A space is the symbol of ▁ (unless the model keeps spaces).
  CharacterSymbol symbol(CodePoint character) const {
    const std::uint32_t page = pages_[character >> 8];
    const std::uint32_t entry = characters_[page << 8 | (character & 0xFF)];
    if (entry == 0) return {kBareCharacter | character, 0};
    return {(entry & kSymbolMask) - 1, entry >> kSymbolBits};
  }

  // As a Merger's table: its units are characters, and a merge is named by what it makes.
  using Unit = CharacterSymbol;
  static constexpr std::size_t kShort = 32;
  static constexpr Symbol kNoUnit = kBareCharacter | 0x1FFFFF;  // a symbol that no text has
  bool read_unit(const char* text, Unit& unit, unsigned& length) const {
    const Character character = decode_valid_character(text);
    unit = symbol(character.code_point);
    length = character.length;
    return true;
  }
  Symbol symbol_of(const Unit& unit) const { return unit.symbol; }
  Symbol symbol_of(Symbol merge) const { return merge; }
  // What two symbols merge into; no_merge() where they don't.
  Symbol merged(Symbol left, Symbol right) const { return merges_->find(left, right); }
  Symbol merged(CharacterSymbol left, CharacterSymbol right) const {
    if (left.common == 0 || right.common == 0) return merged(left.symbol, right.symbol);
    return common_merges_[left.common << kCommonBits | right.common];
  }
  Symbol no_merge() const { return static_cast<Symbol>(size()); }
  // Of what two symbols merge into: lower merges first; pieces of equal score have equal rank.
  std::uint32_t rank(Symbol result) const {
    return ids_are_ranks_ ? result : ranks_[result];  // SentencePiece's trainer gives no other ids
  }

  // No piece has these two characters side by side: text may be cut between them.
  bool is_cut(CodePoint left, CodePoint right) const {
    return neighbours_.find(static_cast<std::uint64_t>(left) << 32 | right) == nullptr;
  }

  // The user-defined symbols as they look in normalised text, and as they are written.
  const PrefixMatcher& user_defined() const { return user_defined_; }
  const PrefixMatcher& user_defined_as_written() const { return user_defined_as_written_; }

  // ' ' stands for ▁ in normalised text: in symbol(), user_defined() and is_cut().
  bool escapes_spaces() const { return model_.escape_whitespaces; }
  // No piece has a space after another character: text may be cut wherever a space follows one.
  bool cuts_at_spaces() const { return cuts_at_spaces_; }
  // Characters that no piece has beside one that is neither among them nor a space: text may be
  // cut between the two.
  const LeadSet& separate() const { return separate_; }

 private:
  void refuse_other_kinds() const;
  void index_pieces();
  void find_bytes();
  std::uint32_t& character_entry(CodePoint character);
  void add_characters();
  void number_common_characters();
  void add_ranks();
  void add_merges();
  void add_merges_of(Id id);
  void note_neighbours(CodePoint left, CodePoint right);
  void find_separate();
  Symbol symbol_of(std::string_view text, bool is_character) const;
  bool can_merge(Id id) const;
  bool is_ignored(const Piece& piece) const;
  std::string normalized(std::string_view piece) const;

  Model model_;
  std::unordered_map<std::string_view, Id> ids_;
  Id unknown_id_ = -1;
  bool has_unused_ = false;
  std::vector<Id> byte_ids_ = std::vector<Id>(256, -1);
  PrefixMatcher user_defined_;
  PrefixMatcher user_defined_as_written_;

  // By code point, in pages of 256: symbol + 1, and the number among the common characters above
  // it; page 0 of `characters_` holds characters of no piece.
  static constexpr unsigned kCommonBits = 8;
  static constexpr std::uint32_t kSymbolMask = (1u << kSymbolBits) - 1;
  std::vector<std::uint32_t> pages_ = std::vector<std::uint32_t>(0x110000 >> 8);
  std::vector<std::uint32_t> characters_ = std::vector<std::uint32_t>(256);

  std::vector<PairTable::Pair> pairs_;  // until merges_ has them
  std::optional<PairTable> merges_;
  std::vector<Symbol> common_merges_;  // of two common characters, by their numbers
  std::vector<std::uint32_t> ranks_;
  bool ids_are_ranks_ = true;
  WordMap<bool> neighbours_;
  bool cuts_at_spaces_ = true;
  LeadSet separate_;
  // ASCII characters by themselves, then the two further kinds of LeadSet, then everything else: with which others each
  // stands side by side in a piece.
  static constexpr std::size_t kKinds = 131;
  static std::size_t kind_of(CodePoint character);
  std::array<std::bitset<kKinds>, kKinds> neighbour_kinds_;
};

}  // namespace vikhr
