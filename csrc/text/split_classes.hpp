// What a character is to the expressions that byte-level tokenizers split text with. split_table.py states the rules.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "text/utf8.hpp"

namespace vikhr {

// `numeric` is for tokenizers that isolate digits first: any character that is numeric to that step.
enum class CharacterClass : std::uint8_t { other, space, newline, number, upper, lower, caseless, mark, numeric };

inline bool is_letter(CharacterClass c) { return c >= CharacterClass::upper && c <= CharacterClass::caseless; }
inline bool is_space(CharacterClass c) { return c == CharacterClass::space || c == CharacterClass::newline; }
inline bool is_sign(CharacterClass c) { return c == CharacterClass::other || c == CharacterClass::mark; }

class SplitClasses {
 public:
  static const SplitClasses& instance();

  struct Read {
    CharacterClass kind;
    unsigned length;  // in bytes
  };
  // The class of the character that starts at `text`, which is valid UTF-8.
  __attribute__((always_inline)) Read read(const char* text) const {
    const auto lead = static_cast<unsigned char>(text[0]);
    if (lead < 0x80) return {class_of(short_[lead]), 1};
    if (lead < 0xE0) return {class_of(short_[(lead & 0x1Fu) << 6 | (text[1] & 0x3F)]), 2};
    const Character character = decode_valid_character(text);
    return {class_of(entry(character.code_point)), character.length};
  }
  // The same, where digits are isolated.
  Read read_with_numeric(const char* text) const {
    const Character character = decode_valid_character(text);
    const std::uint8_t found = entry(character.code_point);
    return {(found & kIsNumeric) != 0 ? CharacterClass::numeric : class_of(found), character.length};
  }
  // Whether normalising to NFC may change a text that has this character.
  bool may_compose(CodePoint c) const { return (entry(c) & kMayCompose) != 0; }

 private:
  SplitClasses();
  static constexpr std::uint8_t kClass = 7, kIsNumeric = 8, kMayCompose = 16;
  static CharacterClass class_of(std::uint8_t entry) { return static_cast<CharacterClass>(entry & kClass); }
  std::uint8_t entry(CodePoint c) const {
    return c < short_.size() ? short_[c] : entries_[std::size_t{pages_[c >> 8]} << 8 | (c & 0xFF)];
  }

  std::array<std::uint8_t, 0x800> short_{};  // of the characters of one and two bytes
  std::array<std::uint16_t, 0x1100> pages_{};
  std::vector<std::uint8_t> entries_;
};

}  // namespace vikhr
