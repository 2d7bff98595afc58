// SentencePiece-exact BPE encoding and decoding of texts, on any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bpe/encode_blocks.hpp"
#include "bpe/id_buffer.hpp"
#include "bpe/merge.hpp"
#include "bpe/normalize.hpp"
#include "text/texts.hpp"
#include "bpe/vocabulary.hpp"
#include "bpe/text_encoder.hpp"

namespace vikhr {

// An id that is no piece's.
class IdError : public std::out_of_range {
 public:
  using std::out_of_range::out_of_range;
};

class BpeEncoder {
 public:
  // ModelError on bytes that are no model which this encoder can follow exactly.
  explicit BpeEncoder(std::string_view model_file);
  ~BpeEncoder();

  const Vocabulary& vocabulary() const { return vocabulary_; }

  // The ids of all texts one after another; `offsets` gets texts.size() + 1 places. The same for
  // any number of threads (0: as many as the machine has). TextError names the first bad text.
  IdBuffer encode(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                  std::int64_t* offsets) const;

  // Appends the text of the ids to `text`; IdError on an id outside the vocabulary.
  void decode(const std::int64_t* ids, std::size_t count, std::string& text) const;

 private:
  void split_unused();

  Vocabulary vocabulary_;
  UnusedPieces unused_;
  std::vector<std::string> surfaces_;  // of the pieces: ▁ as a space
  mutable ShortWordCache cache_;
  mutable WorkerPool<Worker> workers_;
};

}  // namespace vikhr
