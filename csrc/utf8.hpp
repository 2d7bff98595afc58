// UTF-8 as SentencePiece reads it: strict (no overlong forms, no surrogates), and a byte that
// starts no valid character counts as one U+FFFD of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace vikhr {

using CodePoint = std::uint32_t;

inline constexpr CodePoint kSpaceSymbol = 0x2581;  // ▁, which stands for a space in pieces
inline constexpr std::string_view kSpaceSymbolUtf8 = "\xE2\x96\x81";
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

struct Character {
  CodePoint code_point;
  unsigned length;  // in bytes; 0 where no valid character starts
};

// The character at the start of `text`, which must not be empty.
inline Character decode_character(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return static_cast<CodePoint>(static_cast<unsigned char>(text[i]));
  };
  const auto is_trail = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const CodePoint lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if ((lead & 0xE0) == 0xC0 && text.size() >= 2 && is_trail(1)) {
    const CodePoint value = (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    if (value >= 0x80) return {value, 2};
  } else if ((lead & 0xF0) == 0xE0 && text.size() >= 3 && is_trail(1) && is_trail(2)) {
    const CodePoint value = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    if (value >= 0x800 && (value < 0xD800 || value > 0xDFFF)) return {value, 3};
  } else if ((lead & 0xF8) == 0xF0 && text.size() >= 4 && is_trail(1) && is_trail(2) &&
             is_trail(3)) {
    const CodePoint value = (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 |
                            (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    if (value >= 0x10000 && value <= 0x10FFFF) return {value, 4};
  }
  return {0, 0};
}

// The same for text already known to be valid.
inline Character decode_valid_character(const char* text) {
  const auto byte = [&](std::size_t i) {
    return static_cast<CodePoint>(static_cast<unsigned char>(text[i]));
  };
  const CodePoint lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) {
    return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

// Writes the UTF-8 form of a valid code point to `bytes` and returns its length.
inline unsigned encode_character(CodePoint value, unsigned char (&bytes)[4]) {
  const auto low = [&](unsigned shift) {
    return static_cast<unsigned char>(0x80 | ((value >> shift) & 0x3F));
  };
  if (value < 0x80) {
    bytes[0] = static_cast<unsigned char>(value);
    return 1;
  }
  if (value < 0x800) {
    bytes[0] = static_cast<unsigned char>(0xC0 | value >> 6);
    bytes[1] = low(0);
    return 2;
  }
  if (value < 0x10000) {
    bytes[0] = static_cast<unsigned char>(0xE0 | value >> 12);
    bytes[1] = low(6);
    bytes[2] = low(0);
    return 3;
  }
  bytes[0] = static_cast<unsigned char>(0xF0 | value >> 18);
  bytes[1] = low(12);
  bytes[2] = low(6);
  bytes[3] = low(0);
  return 4;
}

struct Utf8Scan {
  std::size_t first_invalid;  // byte offset, or the text's size where all of it is valid
  bool has_space_symbol;      // a literal ▁ occurs before first_invalid
};

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words of text are read as they lie");

inline Utf8Scan scan_utf8(std::string_view text) {
  bool has_space_symbol = false;
  std::size_t position = 0;
  while (position < text.size()) {
    if (text.size() - position >= 8) {
      std::uint64_t word;
      std::memcpy(&word, text.data() + position, 8);
      if ((word & 0x8080808080808080u) == 0) {
        position += 8;
        continue;
      }
      // Four characters of two bytes: the lead bytes 110xxxxx, of which C0 and C1 are overlong.
      const std::uint64_t not_overlong = (word & 0x001E001E001E001Eu) + 0x007E007E007E007Eu;
      if ((word & 0xC0E0C0E0C0E0C0E0u) == 0x80C080C080C080C0u &&
          (not_overlong & 0x0080008000800080u) == 0x0080008000800080u) {
        position += 8;
        continue;
      }
    }
    const Character character = decode_character(text.substr(position));
    if (character.length == 0) return {position, has_space_symbol};
    has_space_symbol |= character.code_point == kSpaceSymbol;
    position += character.length;
  }
  return {text.size(), has_space_symbol};
}

inline bool is_valid_utf8(std::string_view text) {
  return scan_utf8(text).first_invalid == text.size();
}

// Each byte at which no valid character starts becomes one U+FFFD.
inline void append_repaired(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const std::size_t valid = scan_utf8(text).first_invalid;
    out.append(text.substr(0, valid));
    if (valid == text.size()) return;
    out.append(kReplacementUtf8);
    text.remove_prefix(valid + 1);
  }
}

// Writes every ▁ as a space.
inline void append_with_spaces(std::string_view text, std::string& out) {
  for (;;) {
    const std::size_t symbol = text.find(kSpaceSymbolUtf8);
    out.append(text.substr(0, symbol));
    if (symbol == std::string_view::npos) return;
    out.push_back(' ');
    text.remove_prefix(symbol + kSpaceSymbolUtf8.size());
  }
}

}  // namespace vikhr
