// Sixty-four bytes of text folded at once, where they are ASCII or common Cyrillic.
#pragma once

#include <cstdint>

#include "base/cpu.hpp"

namespace vikhr {

inline constexpr std::size_t kFoldBlock = 64;

// One bit a byte, the first byte's the lowest.
struct FoldMasks {
  std::uint64_t separators;  // the ASCII ones
  std::uint64_t odd;         // neither ASCII nor part of a letter from U+0400 to U+045F
};

// Writes kFoldBlock bytes; those of odd characters mean nothing. Reads one byte more on either
// side of the block.
using FoldBlock = FoldMasks (*)(const char* block, char* folded);

FoldBlock fold_block(Isa isa);

}  // namespace vikhr
