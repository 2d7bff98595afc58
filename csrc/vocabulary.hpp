// A SentencePiece BPE vocabulary turned into tables: which symbol a character is, which two
// neighbouring symbols merge into what and how early, and which text can never be merged across.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hash.hpp"
#include "model.hpp"
#include "utf8.hpp"

namespace vikhr {

using Id = std::int32_t;

// One element of a text while it is merged: a piece id, or a character that is no piece.
using Symbol = std::uint32_t;
inline constexpr Symbol kBareCharacter = 1u << 31;  // | code point
inline constexpr Symbol kNoSymbol = ~Symbol{0};

struct Merge {
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  std::uint32_t rank = kNone;  // lower merges first; pieces of equal score have equal rank
  Symbol result = 0;
};

// The user-defined symbols as a trie over bytes.
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

  Id unknown_id() const { return unknown_id_; }  // what encoding emits
  Id special_id(std::string_view piece, PieceType type) const;  // -1 unless of that type
  Id byte_id(unsigned char byte) const { return byte_ids_[byte]; }
  int byte_value(Id id) const;  // of a byte piece

  // The symbol of a character. A space is the symbol of ▁ (unless the model keeps spaces).
  Symbol symbol(CodePoint character) const {
    const std::uint32_t page = pages_[character >> 8];
    const Symbol symbol = symbols_[page << 8 | (character & 0xFF)];
    return symbol == 0 ? (kBareCharacter | character) : symbol - 1;
  }

  Merge merge(Symbol left, Symbol right) const {
    const Merge* merge = merges_.find(static_cast<std::uint64_t>(left) << 32 | right);
    return merge == nullptr ? Merge{} : *merge;
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

 private:
  void refuse_other_kinds() const;
  void index_pieces();
  void find_bytes();
  void set_symbol(CodePoint character, Symbol symbol);
  void add_characters();
  void add_merges();
  void add_merges_of(Id id, std::uint32_t rank);
  std::vector<std::uint32_t> ranks() const;
  Symbol symbol_of(std::string_view text, bool is_character) const;
  bool can_merge(Id id) const;
  bool is_ignored(const Piece& piece) const;
  std::string normalized(std::string_view piece) const;

  Model model_;
  std::unordered_map<std::string_view, Id> ids_;
  Id unknown_id_ = -1;
  std::vector<Id> byte_ids_ = std::vector<Id>(256, -1);
  PrefixMatcher user_defined_;
  PrefixMatcher user_defined_as_written_;

  // Code points to symbols + 1 in pages of 256; page 0 of `symbols_` holds characters of no piece.
  std::vector<std::uint32_t> pages_ = std::vector<std::uint32_t>(0x110000 >> 8);
  std::vector<Symbol> symbols_ = std::vector<Symbol>(256);

  WordMap<Merge> merges_;
  WordMap<bool> neighbours_;
  bool cuts_at_spaces_ = true;
};

}  // namespace vikhr
