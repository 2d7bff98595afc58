#include "bpe/normalize.hpp"

namespace vikhr {

Normalizer::Result Normalizer::normalize(std::string_view text, std::size_t document,
                                         InvalidUtf8 policy) {
  if (text.empty()) return {text, false};
  Utf8Scan scan = scan_utf8(text);
  if (scan.first_invalid != text.size()) {
    if (policy == InvalidUtf8::raise) refuse_invalid(document, scan.first_invalid);
    repaired_.clear();
    append_repaired(text, repaired_);
    text = repaired_;
    scan = scan_utf8(text);
  }
  const Model& model = vocabulary_.model();
  if (model.remove_extra_whitespaces) {
    squeeze(text);
    return {normalized_, false};
  }
  const bool is_escaped = vocabulary_.escapes_spaces() && scan.has_space_symbol;
  // User-defined symbols may start with the dummy prefix, so they need to see it.
  const bool shows_prefix = model.add_dummy_prefix && !vocabulary_.user_defined().empty();
  if (!is_escaped && !shows_prefix) return {text, model.add_dummy_prefix};
  normalized_.clear();
  if (shows_prefix) normalized_.push_back(' ');
  if (is_escaped) {
    append_with_spaces(text, normalized_);
  } else {
    normalized_.append(text);
  }
  return {normalized_, model.add_dummy_prefix && !shows_prefix};
}

// SentencePiece's remove_extra_whitespaces, step by step: no spaces at the ends, no two of them
// together, except inside user-defined symbols.
void Normalizer::squeeze(std::string_view text) {
  const auto take = [&]() {
    std::size_t length = vocabulary_.user_defined_as_written().match(text).length;
    if (length == 0) length = decode_valid_character(text.data()).length;
    const std::string_view taken = text.substr(0, length);
    text.remove_prefix(length);
    return taken;
  };
  normalized_.clear();
  std::string squeezed;
  bool is_after_space = true;
  bool is_leading = true;
  while (!text.empty()) {
    std::string_view taken = take();
    if (is_leading && taken == " ") continue;
    is_leading = false;
    while (is_after_space && !taken.empty() && taken.front() == ' ') taken.remove_prefix(1);
    if (taken.empty()) continue;
    squeezed.append(taken);
    is_after_space = taken.back() == ' ';
  }
  if (is_leading) return;
  if (vocabulary_.model().add_dummy_prefix) normalized_.push_back(' ');
  if (vocabulary_.escapes_spaces()) {
    append_with_spaces(squeezed, normalized_);
  } else {
    normalized_.append(squeezed);
  }
  normalized_.erase(normalized_.find_last_not_of(' ') + 1);
}

void Normalizer::shrink() {
  std::string().swap(repaired_);
  std::string().swap(normalized_);
}

}  // namespace vikhr
