// Texts as sets of shingles: runs of n words or n characters, each a 64-bit hash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/texts.hpp"
#include "text/words.hpp"

namespace vikhr {

enum class ShingleUnit : std::uint32_t { word, character };

struct ShingleKind {
  ShingleUnit unit;
  std::uint32_t length;  // in units, from 1 to kMaxShingle
};

inline constexpr std::uint32_t kMaxShingle = 1000;
inline constexpr std::size_t kShingledTogether = 1 << 20;  // bytes of text a thread takes at once

// std::invalid_argument where the length is out of its range.
void check(const ShingleKind& kind);

// One thread's work space.
class Shingler {
 public:
  Shingler(ShingleKind kind, Isa isa) : kind_(kind), words_(isa) {}

  // Appends the shingles of the text in their order, repeated ones too; at least one.
  // A text shorter than a shingle is one shingle as a whole, which equals no other's: all its
  // units, or where it has none its very bytes. Returns whether that was so.
  bool append(const Text& text, std::size_t document, InvalidUtf8 policy,
              std::vector<std::uint64_t>& shingles);

 private:
  void make_shingles(std::vector<std::uint64_t>& shingles);

  ShingleKind kind_;
  Transcoder transcoder_;
  WordReader words_;
  std::vector<std::uint64_t> units_;
};

// Makes sets of shingles: one thread's work space.
class SetMaker {
 public:
  // Sorts the values and keeps each once; returns how many these are.
  std::size_t make_set(std::uint64_t* values, std::size_t count);

 private:
  void sort(std::uint64_t* values, std::size_t count);

  std::vector<std::uint32_t> ends_;
  std::vector<std::uint64_t> copy_;
};

}  // namespace vikhr
