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
