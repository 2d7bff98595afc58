#include "text/words.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/hash.hpp"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace vikhr {
namespace {

constexpr std::size_t kPiece = 1 << 16;
constexpr std::size_t kWordLoad = 32;  // bytes of a word hashed together

bool is_ascii_separator(char character) {
  return static_cast<unsigned char>(character) < 0x80 &&
         CharacterTable::instance().short_forms()[static_cast<unsigned char>(character)] == 0;
}

// Writes start + i for each set bit i, and then up to kSpare numbers more; returns where the latter
// start. Most blocks need one or two rounds, which the processor can foresee.
constexpr std::size_t kSpare = 12;

std::uint32_t* write_positions(std::uint64_t mask, std::size_t start, std::uint32_t* out) {
  constexpr std::uint64_t kLast = std::uint64_t{1} << 63;
  std::uint32_t* const end = out + __builtin_popcountll(mask);
  do {
    for (std::size_t i = 0; i < kSpare; ++i) {
      out[i] = static_cast<std::uint32_t>(start) +
               static_cast<std::uint32_t>(__builtin_ctzll(mask | kLast));
      mask &= mask - 1;
    }
    out += kSpare;
  } while (mask != 0);
  return end;
}

// The first `size` of eight bytes at `offset` of a word; those behind it read as 0.
std::uint64_t load_letters(const char* word, std::size_t size, std::size_t offset) {
  static constexpr auto kMasks = [] {
    std::array<unsigned char, 2 * kWordLoad> masks{};
    for (std::size_t i = 0; i < kWordLoad; ++i) masks[i] = 0xFF;
    return masks;
  }();
  std::uint64_t letters, mask;
  std::memcpy(&letters, word + offset, sizeof letters);
  std::memcpy(&mask, kMasks.data() + kWordLoad - size + offset, sizeof mask);
  return letters & mask;
}

// Reads up to kWordLoad bytes more than the word has. No letter has a byte 0, so that padding
// with zeros confuses no two words.
std::uint64_t hash_letters(const char* word, std::size_t size) {
  constexpr std::uint64_t kKeys[4] = {0x243F6A8885A308D3u, 0x13198A2E03707344u,
                                      0xA4093822299F31D0u, 0x082EFA98EC4E6C89u};
  std::uint64_t state = 0;
  for (;;) {
    const std::size_t count = std::min(size, kWordLoad);
    const std::uint64_t first = mix(load_letters(word, count, 0) ^ kKeys[0] ^ state,
                                    load_letters(word, count, 8) ^ kKeys[1]);
    const std::uint64_t second = mix(load_letters(word, count, 16) ^ kKeys[2],
                                     load_letters(word, count, 24) ^ kKeys[3]);
    state = hash_word(first + 3 * second);
    if (size <= kWordLoad) return state;
    word += kWordLoad;
    size -= kWordLoad;
  }
}

// Spells the words of a run out before hashing them.
class SpellingSink {
 public:
  SpellingSink(std::string& word, std::vector<std::uint64_t>& words) : word_(word), words_(words) {
    word_.clear();
  }

  void letter(CodePoint c) {
    unsigned char bytes[4];
    const unsigned length = encode_character(c, bytes);
    last_ = word_.size();
    word_.append(reinterpret_cast<const char*>(bytes), length);
  }
  void replace_letter(CodePoint c) {
    word_.resize(last_);
    letter(c);
  }
  void separator() {
    if (word_.empty()) return;
    const std::size_t size = word_.size();
    word_.append(kWordLoad, '\0');
    words_.push_back(hash_letters(word_.data(), size));
    word_.clear();
  }

 private:
  std::string& word_;
  std::size_t last_ = 0;
  std::vector<std::uint64_t>& words_;
};

}  // namespace

std::size_t WordReader::piece_size(std::string_view text) {
  if (text.size() <= kPiece) return text.size();
  for (std::size_t end = kPiece; end > 0; --end) {
    if (is_ascii_separator(text[end - 1])) return end;
  }
  std::size_t end = kPiece;
  while (end < text.size() && !is_ascii_separator(text[end])) ++end;
  return end;
}

void WordReader::append(std::string_view piece, const TextPlace& place,
                        std::vector<std::uint64_t>& words) {
  if (piece.size() > kPiece) return read_slowly(piece, place, words);  // one run, which may be huge
  const std::size_t edges = fold(piece);
  const std::uint32_t* odd = odd_.data();
  for (std::size_t i = 0; i < edges; i += 2) {
    const std::uint32_t start = edges_[i], end = edges_[i + 1];
    if (*odd < end) {
      const TextPlace here{place.document, place.offset + start, place.policy};
      read_slowly(piece.substr(start, end - start), here, words);
      while (*odd < end) ++odd;
      continue;
    }
    words.push_back(hash_letters(folded_.data() + start, end - start));
  }
}

void WordReader::reserve(std::size_t blocks) {
  const std::size_t size = blocks * kFoldBlock;
  if (folded_.size() >= size + kWordLoad) return;
  folded_.resize(size + kWordLoad);
  edges_.resize(size + kSpare);
  odd_.resize(size + kSpare);
}

// Returns how many edges there are; the odd bytes end with one behind the piece.
std::size_t WordReader::fold(std::string_view piece) {
  const std::size_t blocks = piece.size() / kFoldBlock + 1;
  reserve(blocks);
  std::uint32_t* edge = edges_.data();
  std::uint32_t* odd = odd_.data();
  std::uint64_t in_run = 0;  // whether the byte before the block is
  for (std::size_t at = 0; at < blocks * kFoldBlock; at += kFoldBlock) {
    const bool is_inside = at > 0 && at + kFoldBlock < piece.size();
    const FoldMasks masks = is_inside ? fold_block_(piece.data() + at, folded_.data() + at)
                                      : fold_at_an_end(piece, at);
    edge = write_positions(~masks.separators ^ (~masks.separators << 1 | in_run), at, edge);
    in_run = ~masks.separators >> 63;
    if (masks.odd != 0) odd = write_positions(masks.odd, at, odd);
  }
  *odd = ~std::uint32_t{0};
  return static_cast<std::size_t>(edge - edges_.data());
}

// There are spaces before and after the piece.
FoldMasks WordReader::fold_at_an_end(std::string_view piece, std::size_t at) {
  char bytes[1 + kFoldBlock + 1];
  std::memset(bytes, ' ', sizeof bytes);
  const std::size_t before = at > 0 ? 1 : 0;
  std::memcpy(bytes + 1 - before, piece.data() + at - before,
              std::min(before + kFoldBlock + 1, piece.size() - at + before));
  return fold_block_(bytes + 1, folded_.data() + at);
}

void WordReader::read_slowly(std::string_view run, const TextPlace& place,
                             std::vector<std::uint64_t>& words) {
  SpellingSink sink(word_, words);
  read_characters(run, place, sink);
  sink.separator();
}

}  // namespace vikhr
