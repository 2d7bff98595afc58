// What may become a piece of a vocabulary, as SentencePiece's trainer has it: characters of one
// script, no digits, a space only in front.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "text/utf8.hpp"

namespace vikhr {

// What may stand together in a new piece: characters of the same class. Characters without an entry
// join nothing; those of kJoinsAny join whatever they follow.
using CharacterClasses = std::unordered_map<CodePoint, std::uint32_t>;
inline constexpr std::uint32_t kJoinsAny = ~std::uint32_t{0};

class PieceRules {
 public:
  PieceRules(CharacterClasses classes, std::size_t max_characters)
      : classes_(std::move(classes)), max_characters_(max_characters) {}

  bool can_join(CodePoint left, CodePoint right) const;

  // Of a text of two characters or more, in valid UTF-8.
  bool may_be_piece(std::string_view text) const;

 private:
  CharacterClasses classes_;
  std::size_t max_characters_;
};

}  // namespace vikhr
