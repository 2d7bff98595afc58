// Packing of documents into sequences: which window of which document goes where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vikhr {

struct Packing {
  // One entry a window, sequence after sequence.
  std::vector<std::int64_t> window_document;
  std::vector<std::int64_t> window_start;  // within the document
  std::vector<std::int64_t> window_length;
  // Sequence s holds the windows sequence_offsets[s] to sequence_offsets[s + 1] - 1.
  std::vector<std::int64_t> sequence_offsets;
};

// Cuts documents longer than `capacity` into windows of it and packs the windows of every `block`
// consecutive documents by best-fit decreasing (D. S. Johnson, 1973): longest window first, into
// the fullest sequence with room for it. Ties: the earlier window; the sequence filled last.
// std::invalid_argument unless all lengths, `capacity` and `block` are at least 1.
Packing pack_windows(const std::int64_t* lengths, std::size_t documents, std::int64_t capacity,
                     std::int64_t block);

}  // namespace vikhr
