// Where two tokenizations of the same text have a boundary in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vikhr {

// One side's tokens of several texts. Those of text i are offsets[i] to offsets[i + 1] - 1.
struct TokenLengths {
  const std::int64_t* lengths;  // bytes of each token; 0 of one that stands for no text
  const std::int64_t* offsets;
  const std::int64_t* starts;  // of each text: the byte that its first token begins with
};

// For each of the first side's tokens the second's that ends at the same byte of the same text, by
// its place among all of them, or -1. Of several that end at one byte, the last ends a stretch of
// text on either side: the others have none.
std::vector<std::int64_t> shared_boundaries(const TokenLengths& first, const TokenLengths& second,
                                            std::size_t texts);

}  // namespace vikhr
