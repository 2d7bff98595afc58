#include "texts.hpp"

#include <algorithm>
#include <cstring>

#include "utf8.hpp"

namespace vikhr {

void refuse_huge(std::size_t length, std::size_t document) {
  constexpr std::size_t kMaxText = INT32_MAX;
  if (length > kMaxText) {
    throw TextError(document, "longer than 2 GiB; cut it into several documents");
  }
}

void refuse_invalid(std::size_t document, std::size_t byte) {
  throw TextError(document, "byte " + std::to_string(byte) +
                                ": not valid UTF-8; errors=\"replace\" puts U+FFFD there");
}

std::size_t Texts::num_bytes() const {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < count_; ++i) bytes += (*this)[i].num_bytes();
  return bytes;
}

std::vector<std::size_t> cut_in_blocks(const Texts& texts, std::size_t block_bytes) {
  std::vector<std::size_t> starts{0};
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    bytes += texts[i].num_bytes() + 16;  // a document costs something even if it is empty
    if (bytes >= block_bytes && i + 1 < texts.size()) {
      starts.push_back(i + 1);
      bytes = 0;
    }
  }
  starts.push_back(texts.size());
  return starts;
}

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
