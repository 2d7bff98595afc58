// Cuts text into the words that a byte-level tokenizer merges apart, as its regular expression would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "text/split_classes.hpp"

namespace vikhr {

// In each kind, `\s+(?!\S)|\s+` comes last: of spaces before a word the last one goes with it.
enum class SplitKind {
  gpt2,         // '(s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
  digits_gpt2,  // digits one by one, then as gpt2 (SmolLM)
  llama3,       // '(s|...) in any case|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+
  qwen2,        // the same with \p{N}
  tekken,       // [^\r\n\p{L}\p{N}]? before upper*lower+ or upper+lower*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+
};

// By the names above; std::invalid_argument on others.
inline SplitKind split_kind(std::string_view name) {
  if (name == "gpt2") return SplitKind::gpt2;
  if (name == "digits_gpt2") return SplitKind::digits_gpt2;
  if (name == "llama3") return SplitKind::llama3;
  if (name == "qwen2") return SplitKind::qwen2;
  if (name == "tekken") return SplitKind::tekken;
  throw std::invalid_argument("no such way to split text: " + std::string(name));
}

namespace split_rules {

struct Gpt2 {
  static constexpr bool kIsolatesDigits = false;
  static constexpr bool kHasContractions = true;
  static constexpr bool kContractionsInAnyCase = false;
  static constexpr bool kAnyPrefix = false;      // before letters: any sign or space, not only ' '
  static constexpr bool kIsCased = false;        // a word ends where lower case turns to upper
  static constexpr std::size_t kMostDigits = 0;  // of a number; 0: any, and ' ' before them
  static constexpr std::string_view kTrail = "";  // what may follow signs
  static constexpr bool kCutsAtNewlines = false;
};
struct DigitsGpt2 : Gpt2 {
  static constexpr bool kIsolatesDigits = true;
};
struct Llama3 : Gpt2 {
  static constexpr bool kContractionsInAnyCase = true;
  static constexpr bool kAnyPrefix = true;
  static constexpr std::size_t kMostDigits = 3;
  static constexpr std::string_view kTrail = "\r\n";
  static constexpr bool kCutsAtNewlines = true;
};
struct Qwen2 : Llama3 {
  static constexpr std::size_t kMostDigits = 1;
};
struct Tekken : Qwen2 {
  static constexpr bool kHasContractions = false;
  static constexpr bool kIsCased = true;
  static constexpr std::string_view kTrail = "\r\n/";
};

}  // namespace split_rules

// The first byte in the lowest bits.
inline std::uint64_t load_little_endian(const char* bytes) {
  std::uint64_t value;
  std::memcpy(&value, bytes, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  value = __builtin_bswap64(value);
#endif
  return value;
}

// Where words end, one after another, in one text of valid UTF-8.
template <typename Rules>
class Splitter {
 public:
  explicit Splitter(std::string_view text) : classes_(SplitClasses::instance()), end_(text.data() + text.size()) {}

  // The end of the word that starts at `at`, which is before the text's end.
  const char* word_end(const char* at) const {
    const char* first = at + (*at == ' ');
    if (const char* next = skip_usual_letters(first); next != first) return run_end(next, joins_usual);
    if (Rules::kHasContractions && *at == '\'') {
      if (const std::size_t length = contraction(at)) return at + length;
    }
    const auto [kind, length] = read(at);
    const char* next = at + length;
    if (kind == CharacterClass::numeric) return next;
    if (is_letter(kind) || (Rules::kIsCased && kind == CharacterClass::mark)) return letters_end(at);
    if (kind == CharacterClass::number) return number_end(at);
    const CharacterClass following = next < end_ ? read(next).kind : CharacterClass::newline;
    const bool may_lead = Rules::kAnyPrefix ? kind != CharacterClass::newline : *at == ' ';
    if (may_lead && (is_letter(following) || (Rules::kIsCased && following == CharacterClass::mark))) {
      return letters_end(next);
    }
    if (is_sign(kind)) return signs_end(at);
    if (*at == ' ' && is_sign(following)) return signs_end(next);
    if (*at == ' ' && Rules::kMostDigits == 0 && following == CharacterClass::number) return number_end(next);
    return spaces_end(at);
  }

 private:
  SplitClasses::Read read(const char* at) const {
    return Rules::kIsolatesDigits ? classes_.read_with_numeric(at) : classes_.read(at);
  }
  template <typename Belongs>
  const char* run_end(const char* at, const Belongs& belongs) const {
    while (at < end_) {
      const auto [kind, length] = read(at);
      if (!belongs(kind)) break;
      at += length;
    }
    return at;
  }

  // Whether a character goes on with what skip_usual_letters() went over.
  static bool joins_usual(CharacterClass c) { return Rules::kIsCased ? joins_lower(c) : is_letter(c); }
  static bool joins_upper(CharacterClass c) {
    return c == CharacterClass::upper || c == CharacterClass::caseless || c == CharacterClass::mark;
  }
  static bool joins_lower(CharacterClass c) {
    return c == CharacterClass::lower || c == CharacterClass::caseless || c == CharacterClass::mark;
  }

  // Goes over letters of ASCII or Cyrillic, as far as that is quick: where case matters, over one of upper case and
  // those of lower case behind it. Returns `at` where there are none, or none of lower case.
  const char* skip_usual_letters(const char* at) const {
    if (Rules::kIsCased) {
      const char* lower = at + (at < end_ && *at >= 'A' && *at <= 'Z');
      const char* next = skip_ascii<0>(lower);
      return next != lower ? next : at;
    }
    const char* next = skip_ascii<0x20>(at);
    return next != at ? next : skip_cyrillic(at);
  }

  // Over letters of lower case, or of both where their difference is `kCaseBit`, eight bytes at a time.
  template <unsigned char kCaseBit>
  const char* skip_ascii(const char* at) const {
    constexpr std::uint64_t kOnes = 0x0101010101010101u, kHigh = 0x80 * kOnes;
    for (; end_ - at >= 8; at += 8) {
      const std::uint64_t bytes = load_little_endian(at);
      const std::uint64_t low = (bytes & ~kHigh) | kCaseBit * kOnes;
      const std::uint64_t from_a = low + (0x80 - 'a') * kOnes, after_z = low + (0x7F - 'z') * kOnes;
      const std::uint64_t others = ~(from_a & ~after_z & ~bytes) & kHigh;
      if (others != 0) return at + __builtin_ctzll(others) / 8;
    }
    return at;
  }

  // Over letters of U+0400 to U+047F: those of the leads D0 and D1.
  const char* skip_cyrillic(const char* at) const {
    for (; end_ - at >= 8; at += 8) {
      const std::uint64_t differs = (load_little_endian(at) & 0x00FE00FE00FE00FEu) ^ 0x00D000D000D000D0u;
      const std::uint64_t others = (differs + 0x00FF00FF00FF00FFu) & 0x0100010001000100u;
      if (others != 0) return at + __builtin_ctzll(others) / 16 * 2;
    }
    return at;
  }

  // The length of a contraction, 0 where none starts at the apostrophe.
  std::size_t contraction(const char* at) const {
    const auto left = static_cast<std::size_t>(end_ - at);
    const auto letter = [&](std::size_t i) {
      const char c = i < left ? at[i] : '\0';
      return Rules::kContractionsInAnyCase && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    };
    const char first = letter(1), second = letter(2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if ((first == 'r' || first == 'v') && second == 'e') return 3;
    if (first == 'l' && second == 'l') return 3;
    constexpr std::string_view kLongS = "\xC5\xBF";  // ſ, in another case s
    if (Rules::kContractionsInAnyCase && std::string_view(at + 1, left - 1).substr(0, 2) == kLongS) return 3;
    return 0;
  }

  const char* letters_end(const char* at) const {
    if (!Rules::kIsCased) return run_end(at, is_letter);
    const char* end = at;
    const char* lower_end = at;  // behind the last one that could end it in lower case
    while (end < end_) {
      const auto [kind, length] = read(end);
      if (kind == CharacterClass::lower) return run_end(end, joins_lower);
      if (!joins_upper(kind)) break;
      end += length;
      if (kind != CharacterClass::upper) lower_end = end;
    }
    return lower_end != at ? lower_end : end;
  }

  const char* number_end(const char* at) const {
    const auto is_number = [](CharacterClass c) { return c == CharacterClass::number; };
    if (Rules::kMostDigits == 0) return run_end(at, is_number);
    for (std::size_t i = 0; i < Rules::kMostDigits && at < end_; ++i) {
      const auto [kind, length] = read(at);
      if (!is_number(kind)) break;
      at += length;
    }
    return at;
  }

  const char* signs_end(const char* at) const {
    at = run_end(at, is_sign);
    while (at < end_ && Rules::kTrail.find(*at) != std::string_view::npos) ++at;
    return at;
  }

  const char* spaces_end(const char* at) const {
    const char* end = at;
    const char* last = at;          // where the last one starts
    const char* newline_end = at;  // behind the last newline
    CharacterClass kind = CharacterClass::newline;
    while (end < end_) {
      const auto found = read(end);
      kind = found.kind;
      if (!is_space(kind)) break;
      last = end;
      end += found.length;
      if (kind == CharacterClass::newline) newline_end = end;
    }
    if (Rules::kCutsAtNewlines && newline_end != at) return newline_end;
    const bool is_followed = end < end_ && kind != CharacterClass::numeric;
    return is_followed && last != at ? last : end;
  }

  const SplitClasses& classes_;
  const char* end_;
};

// Calls `take` with each word of a text of valid UTF-8, in order.
template <typename Take>
void split(SplitKind kind, std::string_view text, const Take& take) {
  const auto run = [&](const auto rules) {
    const Splitter<std::decay_t<decltype(rules)>> splitter(text);
    const char* const end = text.data() + text.size();
    for (const char* at = text.data(); at < end;) {
      const char* word = at;
      at = splitter.word_end(at);
      take(std::string_view(word, static_cast<std::size_t>(at - word)));
    }
  };
  switch (kind) {
    case SplitKind::gpt2: return run(split_rules::Gpt2{});
    case SplitKind::digits_gpt2: return run(split_rules::DigitsGpt2{});
    case SplitKind::llama3: return run(split_rules::Llama3{});
    case SplitKind::qwen2: return run(split_rules::Qwen2{});
    case SplitKind::tekken: return run(split_rules::Tekken{});
  }
}

}  // namespace vikhr
