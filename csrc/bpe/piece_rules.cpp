#include "bpe/piece_rules.hpp"

namespace vikhr {

bool PieceRules::may_be_piece(std::string_view text) const {
  std::size_t characters = 0;
  CodePoint before = ' ';
  for (std::size_t at = 0; at < text.size(); ++characters) {
    const Character character = decode_valid_character(text.data() + at);
    if (at > 0 && !can_join(before, character.code_point)) return false;
    // A joining mark takes the class of what it follows.
    const auto found = classes_.find(character.code_point);
    const bool is_mark = found != classes_.end() && found->second == kJoinsAny;
    if (at == 0 || !is_mark) before = character.code_point;
    at += character.length;
  }
  return characters <= max_characters_;
}

bool PieceRules::can_join(CodePoint left, CodePoint right) const {
  const auto right_class = classes_.find(right);
  if (right_class == classes_.end()) return false;
  if (left == ' ') return true;
  const auto left_class = classes_.find(left);
  if (left_class == classes_.end()) return false;
  return left_class->second == right_class->second || left_class->second == kJoinsAny ||
         right_class->second == kJoinsAny;
}

}  // namespace vikhr
