// What is read of a text before anything is looked up: is it valid UTF-8, and where do its units start?
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace vikhr {

struct Utf8Scan {
  std::size_t first_invalid;  // byte offset, or the text's size where all of it is valid
  bool has_space_symbol;      // a literal ▁ occurs before first_invalid
};

Utf8Scan scan_utf8(std::string_view text);

inline bool is_valid_utf8(std::string_view text) {
  return scan_utf8(text).first_invalid == text.size();
}

// Each byte at which no valid character starts becomes one U+FFFD.
void append_repaired(std::string_view text, std::string& out);

// Some characters, which can be told by their first byte: any of ASCII, and those of the blocks where the punctuation of
// European scripts is: U+0080 to U+00BF (which have the lead byte C2) and U+2000 to U+2FFF (E2).
class LeadSet {
 public:
  static constexpr unsigned char kLatin = 0xC2;
  static constexpr unsigned char kGeneral = 0xE2;

  void insert(unsigned char lead) {
    if (lead == kLatin) {
      latin_ = lead;
    } else if (lead == kGeneral) {
      general_ = lead;
    } else {
      const auto row = static_cast<std::size_t>(lead & 15);
      rows_[row] = static_cast<std::uint8_t>(rows_[row] | 1 << (lead >> 4));
    }
  }
  bool contains(unsigned char byte) const {
    return (byte < 128 && (rows_[byte & 15] >> (byte >> 4) & 1) != 0) || byte == latin_ || byte == general_;
  }
  // Of ASCII: by the low four bits of a character, a bit for each value of the high ones.
  const std::array<std::uint8_t, 16>& rows() const { return rows_; }
  unsigned char latin() const { return latin_; }
  unsigned char general() const { return general_; }

 private:
  static constexpr unsigned char kNone = 0xFF;  // in no text
  std::array<std::uint8_t, 16> rows_{};
  unsigned char latin_ = kNone;
  unsigned char general_ = kNone;
};

// Finds where units start in a text that comes 64 bytes at a time: at a space after something else, and between a
// separate character and one that is neither separate nor a space.
class UnitScanner {
 public:
  static constexpr std::size_t kBlock = 64;

  explicit UnitScanner(const LeadSet& separate);

  // Begins a text. `follows_space`: as if a space stood before it.
  void start(bool follows_space) {
    spaces_ = follows_space ? 1 : 0;
    separate_ = others_ = 0;
  }

  // The starts within the next block as bits, the lowest first; `block` has kBlock readable bytes.
  std::uint64_t next(const char* block) {
    const Kinds kinds = kinds_of_(block, separate_set_);
    // The bytes behind a lead byte are of its kind; no such character has more than two.
    std::uint64_t separate = kinds.separate | ((kinds.separate << 1 | separate_) & kinds.trails);
    separate |= (separate << 1 | separate_) & kinds.trails;
    const std::uint64_t others = ~(kinds.spaces | separate);
    const std::uint64_t starts = (kinds.spaces & ~(kinds.spaces << 1 | spaces_)) |
                                 (separate & (others << 1 | others_)) |
                                 (others & (separate << 1 | separate_));
    spaces_ = kinds.spaces >> 63;
    separate_ = separate >> 63;
    others_ = others >> 63;
    return starts;
  }

 private:
  struct Kinds {
    std::uint64_t spaces;
    std::uint64_t separate;  // their lead bytes
    std::uint64_t trails;    // 10xxxxxx
  };
  static Kinds kinds_plain(const char* block, const LeadSet& separate);
  static Kinds kinds_avx2(const char* block, const LeadSet& separate);

  LeadSet separate_set_;
  Kinds (*kinds_of_)(const char*, const LeadSet&);
  // Of what kind the byte before the next block was: 1 for one of them, or all 0 at the start of a text.
  std::uint64_t spaces_ = 0;
  std::uint64_t separate_ = 0;
  std::uint64_t others_ = 0;
};

}  // namespace vikhr
