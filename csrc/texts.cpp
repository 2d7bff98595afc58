#include "texts.hpp"

#include <algorithm>
#include <cstring>

#include "utf8.hpp"

namespace vikhr {

std::string_view Transcoder::utf8(const Text& text) {
  switch (text.width) {
    case 1: return transcode(static_cast<const std::uint8_t*>(text.data), text.length);
    case 2: return transcode(static_cast<const std::uint16_t*>(text.data), text.length);
    case 4: return transcode(static_cast<const std::uint32_t*>(text.data), text.length);
    default: return {static_cast<const char*>(text.data), text.length};
  }
}

template <typename CodeUnit>
std::string_view Transcoder::transcode(const CodeUnit* units, std::size_t length) {
  constexpr std::size_t kMostBytes = sizeof(CodeUnit) == 1 ? 2 : 4;  // that one writes
  if (buffer_.size() < kMostBytes * length) buffer_.resize(kMostBytes * length);
  char* out = buffer_.data();
  for (std::size_t i = 0; i < length; ++i) {
    const CodePoint value = units[i];
    if (value < 0x800) {  // one byte or two without a branch: letters and spaces alternate
      const bool is_long = value >= 0x80;
      out[0] = static_cast<char>(is_long ? 0xC0 | value >> 6 : value);
      out[1] = static_cast<char>(0x80 | (value & 0x3F));
      out += is_long ? 2 : 1;
      continue;
    }
    unsigned char bytes[4];
    const unsigned count = encode_character(value, bytes);
    std::memcpy(out, bytes, sizeof bytes);
    out += count;
  }
  return {buffer_.data(), static_cast<std::size_t>(out - buffer_.data())};
}

}  // namespace vikhr
