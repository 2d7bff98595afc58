// The words of a text as 64-bit hashes of their folded letters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/fold.hpp"
#include "text/read_characters.hpp"

namespace vikhr {

// One thread's work space. ASCII and common Cyrillic letters keep their length when folded: they are
// folded sixty-four bytes at a time, and words are hashed where they lie. A run between ASCII
// separators that has any other character goes through `read_characters`; the same letters give
// the same hash both ways.
class WordReader {
 public:
  explicit WordReader(Isa isa) : fold_block_(fold_block(require_isa(isa))) {}

  // How much of the text to read next: whole words, about 64 KiB unless one is longer.
  static std::size_t piece_size(std::string_view text);

  // Appends the hash of each word. TextError as `read_characters`.
  void append(std::string_view piece, const TextPlace& place, std::vector<std::uint64_t>& words);

 private:
  void reserve(std::size_t blocks);
  std::size_t fold(std::string_view piece);
  FoldMasks fold_at_an_end(std::string_view piece, std::size_t at);
  void read_slowly(std::string_view run, const TextPlace& place,
                   std::vector<std::uint64_t>& words);

  FoldBlock fold_block_;
  std::vector<char> folded_;
  std::vector<std::uint32_t> edges_;  // where runs without ASCII separators start and end
  std::vector<std::uint32_t> odd_;    // bytes that the quick way does not know
  std::string word_;
};

}  // namespace vikhr
