// What a character is to a word, and its folded form. unicode_table.py states the rules.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "text/utf8.hpp"

namespace vikhr {

enum class CharacterKind : std::uint8_t { separator, letter, mark, ignored };

class CharacterTable {
 public:
  static const CharacterTable& instance();

  CharacterKind kind(CodePoint c) const { return static_cast<CharacterKind>(entry(c) & 3); }
  CodePoint fold(CodePoint c) const {
    return static_cast<CodePoint>(static_cast<std::int32_t>(c) + (entry(c) >> 2));
  }

  // Of the characters of one and two bytes: the folded form of a letter, 0 for a separator,
  // kSpecial for the others.
  static constexpr std::uint16_t kSpecial = 0xFFFF;
  using ShortForms = std::array<std::uint16_t, 0x800>;
  const ShortForms& short_forms() const { return short_forms_; }

 private:
  CharacterTable();
  std::int32_t entry(CodePoint c) const { return entries_[pages_[c >> 8] << 8 | (c & 0xFF)]; }

  std::array<std::uint16_t, 0x1100> pages_{};
  std::vector<std::int32_t> entries_;  // the kind, and above it what folding adds
  ShortForms short_forms_{};
};

// The letter that a base (folded) and a combining mark make together, 0 where they stay two. Only
// those Cyrillic letters that occur both ways in practice.
inline CodePoint compose(CodePoint base, CodePoint mark) {
  constexpr CodePoint kBreve = 0x306, kDiaeresis = 0x308;
  if (mark == kBreve && base == 0x438) return 0x439;      // и: й
  if (mark == kBreve && base == 0x443) return 0x45E;      // у: ў
  if (mark == kDiaeresis && base == 0x435) return 0x435;  // е: ё, which is read as е
  if (mark == kDiaeresis && base == 0x456) return 0x457;  // і: ї
  return 0;
}

}  // namespace vikhr
