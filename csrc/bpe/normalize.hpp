// A text as the merges see it: valid UTF-8 in which ' ' stands for ▁.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "text/texts.hpp"
#include "bpe/vocabulary.hpp"

namespace vikhr {

class Normalizer {
 public:
  explicit Normalizer(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  struct Result {
    std::string_view text;  // valid until the next call, and while the input is
    bool needs_space;       // the dummy prefix, still to be put before it
  };

  // Copies only what has to change. TextError on invalid UTF-8, unless it is to be replaced.
  Result normalize(std::string_view text, std::size_t document, InvalidUtf8 policy);

  // Gives back the memory of a huge text.
  void shrink();

 private:
  void squeeze(std::string_view text);

  const Vocabulary& vocabulary_;
  std::string repaired_;
  std::string normalized_;
};

}  // namespace vikhr
