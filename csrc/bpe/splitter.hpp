// Cuts text into the words that a byte-level tokenizer merges apart, as its regular expression would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

#include "bpe/split_window.hpp"
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
  static constexpr bool may_trail(char) { return false; }  // behind signs
  static constexpr bool kCutsAtNewlines = false;
};
struct DigitsGpt2 : Gpt2 {
  static constexpr bool kIsolatesDigits = true;
};
struct Llama3 : Gpt2 {
  static constexpr bool kContractionsInAnyCase = true;
  static constexpr bool kAnyPrefix = true;
  static constexpr std::size_t kMostDigits = 3;
  static constexpr bool may_trail(char c) { return c == '\r' || c == '\n'; }
  static constexpr bool kCutsAtNewlines = true;
};
struct Qwen2 : Llama3 {
  static constexpr std::size_t kMostDigits = 1;
};
struct Tekken : Qwen2 {
  static constexpr bool kHasContractions = false;
  static constexpr bool kIsCased = true;
  static constexpr bool may_trail(char c) { return c == '\r' || c == '\n' || c == '/'; }
};

}  // namespace split_rules

// Where words end, one after another, in one text of valid UTF-8.
template <typename Rules>
class Splitter {
 public:
  // A text that is not empty.
  explicit Splitter(std::string_view text) : classes_(SplitClasses::instance()), end_(text.data() + text.size()) {
    look(text.data());
  }

  // The end of the word that starts at `at`, which is before the text's end and not before an earlier call's.
  const char* word_end(const char* at) {
    auto place = static_cast<std::size_t>(at - window_);
    if (place >= kLook) {
      look(at);
      place = 0;
    }
    const std::uint64_t begins_letters = letters_begin_ >> place & 1;
    if ((begins_letters | (signs_begin_ >> place & 1)) == 0) return unusual_end(at);
    const std::uint64_t run = begins_letters != 0 ? letters_ : signs_;
    std::size_t end = place + 1;
    if (Rules::kIsCased && begins_letters != 0) end += count_zeros(letters_ >> place);  // behind the first lower
    end += count_zeros(~(run >> end));
    const char* next = window_ + end;
    if (end >= kBytes || (high_ >> end & 1) != 0) {
      return begins_letters != 0 ? run_end(next, joins_usual) : unusual_end(at);
    }
    return begins_letters != 0 ? next : trail_end(next);
  }

 private:
  static constexpr std::size_t kBytes = ByteKinds::kBytes;
  static constexpr std::size_t kLook = 48;  // a window is left behind when a word starts so far in it

  static std::size_t count_zeros(std::uint64_t bits) { return static_cast<std::size_t>(__builtin_ctzll(bits)); }

  // Takes the window that starts at `at`.
  __attribute__((noinline)) void look(const char* at) {
    window_ = at;
    if (end_ - at < static_cast<std::ptrdiff_t>(kBytes)) {
      std::memset(last_, '\n', sizeof last_);
      std::memcpy(last_, at, static_cast<std::size_t>(end_ - at));
      at = last_;
    }
    const ByteKinds kinds = byte_kinds<Rules::kIsCased>(at);
    const std::uint64_t may_lead = kinds.spaces | (Rules::kAnyPrefix ? kinds.signs : 0);
    const std::uint64_t not_contracted = Rules::kHasContractions ? ~kinds.apostrophes : ~std::uint64_t{0};
    letters_ = kinds.letters;
    std::uint64_t first = kinds.letters;
    if (Rules::kIsCased) {
      letters_ = kinds.lower;
      first = kinds.lower | (kinds.upper & (kinds.lower >> 1 | (kinds.high & kinds.lower >> 2)));
    }
    letters_begin_ = (first | (may_lead & first >> 1)) & not_contracted;
    const std::uint64_t leading = Rules::kAnyPrefix ? kinds.letters >> 1 : 0;  // if it is the only sign
    signs_begin_ = ((kinds.signs & ~leading) | (kinds.spaces & kinds.signs >> 1)) & not_contracted;
    signs_ = kinds.signs;
    high_ = kinds.high;
  }

  // As word_end(), of any word.
  __attribute__((noinline)) const char* unusual_end(const char* at) const {
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

  // Whether a character goes on with the letters of a window.
  static bool joins_usual(CharacterClass c) { return Rules::kIsCased ? joins_lower(c) : is_letter(c); }
  static bool joins_upper(CharacterClass c) {
    return c == CharacterClass::upper || c == CharacterClass::caseless || c == CharacterClass::mark;
  }
  static bool joins_lower(CharacterClass c) {
    return c == CharacterClass::lower || c == CharacterClass::caseless || c == CharacterClass::mark;
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
    return trail_end(run_end(at, is_sign));
  }
  const char* trail_end(const char* at) const {
    while (at < end_ && Rules::may_trail(*at)) ++at;
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

  // One bit for each byte of the window.
  const char* window_;
  std::uint64_t letters_begin_;  // what words of letters may begin with: these themselves, or what may be before them
  std::uint64_t signs_begin_;    // the same of signs
  std::uint64_t letters_;        // where case matters, of lower case
  std::uint64_t signs_;
  std::uint64_t high_;
  char last_[kBytes];  // the text's last bytes, filled up
};

// Calls `take` with each word of a text of valid UTF-8, in order.
template <typename Take>
void split(SplitKind kind, std::string_view text, const Take& take) {
  if (text.empty()) return;
  const auto run = [&](const auto rules) {
    Splitter<std::decay_t<decltype(rules)>> splitter(text);
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
