#include "text/texts.hpp"

#include <algorithm>
#include <cstring>

#include "base/cpu.hpp"
#include "text/utf8.hpp"

#ifdef VIKHR_X86
#include <immintrin.h>
#endif

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

namespace {

#ifdef VIKHR_X86

// For every choice of ASCII characters among eight, which bytes of their two-byte forms are kept.
struct KeptBytes {
  unsigned char places[256][16];
};
constexpr KeptBytes kKept = [] {
  KeptBytes kept{};
  for (unsigned ascii = 0; ascii < 256; ++ascii) {
    unsigned count = 0;
    for (unsigned i = 0; i < 8; ++i) {
      kept.places[ascii][count++] = static_cast<unsigned char>(2 * i);
      if ((ascii >> i & 1) == 0) kept.places[ascii][count++] = static_cast<unsigned char>(2 * i + 1);
    }
    while (count < 16) kept.places[ascii][count++] = 0x80;
  }
  return kept;
}();

// Eight code points at a time, as long as all of them are below U+0800; returns how many were written.
__attribute__((target("ssse3"))) std::size_t write_eights(const std::uint16_t* units,
                                                          std::size_t length, char*& out) {
  std::size_t done = 0;
  for (; done + 8 <= length; done += 8) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(units + done));
    const __m128i high = _mm_and_si128(values, _mm_set1_epi16(static_cast<short>(0xF800)));
    if (_mm_movemask_epi8(_mm_cmpeq_epi16(high, _mm_setzero_si128())) != 0xFFFF) break;
    const __m128i is_ascii = _mm_cmplt_epi16(values, _mm_set1_epi16(0x80));
    const __m128i lead = _mm_or_si128(_mm_srli_epi16(values, 6), _mm_set1_epi16(0xC0));
    const __m128i trail =
        _mm_or_si128(_mm_and_si128(values, _mm_set1_epi16(0x3F)), _mm_set1_epi16(0x80));
    const __m128i both = _mm_or_si128(lead, _mm_slli_epi16(trail, 8));
    const __m128i pairs =
        _mm_or_si128(_mm_and_si128(is_ascii, values), _mm_andnot_si128(is_ascii, both));
    const auto ascii = static_cast<unsigned>(
        _mm_movemask_epi8(_mm_packs_epi16(is_ascii, _mm_setzero_si128())));
    const __m128i places = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kKept.places[ascii]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(pairs, places));
    out += 16 - __builtin_popcount(ascii);
  }
  return done;
}

bool writes_eights() {
  static const bool supported = __builtin_cpu_supports("ssse3");
  return supported;
}

#else

std::size_t write_eights(const std::uint16_t*, std::size_t, char*&) { return 0; }
bool writes_eights() { return false; }

#endif

}  // namespace

template <typename CodeUnit>
std::string_view Transcoder::transcode(const CodeUnit* units, std::size_t length) {
  constexpr std::size_t kMostBytes = sizeof(CodeUnit) == 1 ? 2 : 4;  // that one writes
  if (buffer_.size() < kMostBytes * length) buffer_.resize(kMostBytes * length);
  char* out = buffer_.data();
  [[maybe_unused]] const bool in_eights = writes_eights();
  for (std::size_t i = 0; i < length;) {
    if constexpr (sizeof(CodeUnit) == 2) {
      if (in_eights) i += write_eights(units + i, length - i, out);
    }
    for (const std::size_t end = std::min(i + 8, length); i < end; ++i) {
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
  }
  return {buffer_.data(), static_cast<std::size_t>(out - buffer_.data())};
}

}  // namespace vikhr
