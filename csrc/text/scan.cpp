#include "text/scan.hpp"

#include <cstring>

#include "text/utf8.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define VIKHR_X86 1
#include <immintrin.h>
#endif

namespace vikhr {
namespace {

// Scans from `position` on, one character at a time, to at least `end` or to the first invalid byte.
bool scan_characters(std::string_view text, std::size_t end, std::size_t& position,
                     bool& has_space_symbol) {
  while (position < end) {
    const Character character = decode_character(text.substr(position));
    if (character.length == 0) return false;
    has_space_symbol |= character.code_point == kSpaceSymbol;
    position += character.length;
  }
  return true;
}

#ifdef VIKHR_X86

struct ByteKinds {
  std::uint64_t not_ascii = 0;
  std::uint64_t trails = 0;        // 10xxxxxx
  std::uint64_t overlong = 0;      // C0, C1
  std::uint64_t three_or_more = 0; // 111xxxxx
  std::uint64_t four_or_more = 0;  // 1111xxxx
};

ByteKinds byte_kinds(const char* block) {
  ByteKinds kinds;
  for (unsigned i = 0; i < 4; ++i) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block) + i);
    const auto mask = [i](__m128i chosen) {
      return static_cast<std::uint64_t>(static_cast<std::uint32_t>(_mm_movemask_epi8(chosen)))
             << 16 * i;
    };
    const auto starts_with = [&](unsigned bits, unsigned value) {
      const __m128i masked = _mm_and_si128(bytes, _mm_set1_epi8(static_cast<char>(bits)));
      return mask(_mm_cmpeq_epi8(masked, _mm_set1_epi8(static_cast<char>(value))));
    };
    kinds.not_ascii |= mask(bytes);
    kinds.trails |= starts_with(0xC0, 0x80);
    kinds.overlong |= starts_with(0xFE, 0xC0);
    kinds.three_or_more |= starts_with(0xE0, 0xE0);
    kinds.four_or_more |= starts_with(0xF0, 0xF0);
  }
  return kinds;
}

// How many bytes of the 64 are whole valid characters of up to three bytes; 0 where that takes a
// closer look.
std::size_t valid_bytes(const char* block, bool& has_space_symbol) {
  const ByteKinds kinds = byte_kinds(block);
  std::uint64_t threes = kinds.three_or_more;
  const std::uint64_t leads = kinds.not_ascii & ~kinds.trails;
  if ((kinds.overlong | kinds.four_or_more) != 0) return 0;
  if (kinds.trails != (leads << 1 | threes << 2)) return 0;
  // A character that the block's end cuts is left for the next one.
  const std::size_t whole = (threes >> 62 & 1) != 0 ? 62 : 64 - (leads >> 63);
  for (threes &= ~(std::uint64_t{3} << 62); threes != 0; threes &= threes - 1) {
    const char* start = block + __builtin_ctzll(threes);
    const Character character = decode_character({start, 3});
    if (character.length == 0) return 0;
    has_space_symbol |= character.code_point == kSpaceSymbol;
  }
  return whole;
}

#endif

}  // namespace

Utf8Scan scan_utf8(std::string_view text) {
  bool has_space_symbol = false;
  std::size_t position = 0;
#ifdef VIKHR_X86
  while (text.size() - position >= 64) {
    if (const std::size_t valid = valid_bytes(text.data() + position, has_space_symbol)) {
      position += valid;
    } else if (!scan_characters(text, position + 64, position, has_space_symbol)) {
      return {position, has_space_symbol};
    }
  }
#endif
  scan_characters(text, text.size(), position, has_space_symbol);
  return {position, has_space_symbol};
}

void append_repaired(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const std::size_t valid = scan_utf8(text).first_invalid;
    out.append(text.substr(0, valid));
    if (valid == text.size()) return;
    out.append(kReplacementUtf8);
    text.remove_prefix(valid + 1);
  }
}

UnitScanner::UnitScanner(const LeadSet& separate)
    : separate_set_(separate), kinds_of_(&kinds_plain) {
#ifdef VIKHR_X86
  if (__builtin_cpu_supports("avx2")) kinds_of_ = &kinds_avx2;
#endif
}

UnitScanner::Kinds UnitScanner::kinds_plain(const char* block, const LeadSet& separate) {
  Kinds kinds{0, 0, 0};
  for (std::size_t i = 0; i < kBlock; ++i) {
    const auto byte = static_cast<unsigned char>(block[i]);
    kinds.trails |= static_cast<std::uint64_t>((byte & 0xC0) == 0x80) << i;
    kinds.spaces |= static_cast<std::uint64_t>(byte == ' ') << i;
    kinds.separate |= static_cast<std::uint64_t>(separate.contains(byte)) << i;
  }
  return kinds;
}

#ifdef VIKHR_X86

__attribute__((target("avx2"))) UnitScanner::Kinds UnitScanner::kinds_avx2(
    const char* block, const LeadSet& separate) {
  const __m256i rows = _mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(separate.rows().data())));
  const __m256i bits = _mm256_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                        1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i latin = _mm256_set1_epi8(static_cast<char>(separate.latin()));
  const __m256i general = _mm256_set1_epi8(static_cast<char>(separate.general()));
  Kinds kinds{0, 0, 0};
  for (unsigned i = 0; i < 2; ++i) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block) + i);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
    // A byte beyond ASCII finds 0 in both.
    const __m256i found =
        _mm256_and_si256(_mm256_shuffle_epi8(rows, bytes), _mm256_shuffle_epi8(bits, high));
    const __m256i absent = _mm256_cmpeq_epi8(found, _mm256_setzero_si256());
    const __m256i space = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(' '));
    const __m256i beyond = _mm256_or_si256(_mm256_cmpeq_epi8(bytes, latin), _mm256_cmpeq_epi8(bytes, general));
    const __m256i trail = _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(0xC0)), bytes);
    const auto mask = [i](int chosen) {
      return static_cast<std::uint64_t>(static_cast<std::uint32_t>(chosen)) << 32 * i;
    };
    kinds.spaces |= mask(_mm256_movemask_epi8(space));
    kinds.separate |= mask(~_mm256_movemask_epi8(absent) | _mm256_movemask_epi8(beyond));
    kinds.trails |= mask(_mm256_movemask_epi8(trail));
  }
  return kinds;
}

#endif

}  // namespace vikhr
