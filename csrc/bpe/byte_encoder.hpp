// Byte-level BPE encoding of texts, as Hugging Face's `tokenizers` does it, on any number of threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bpe/byte_vocabulary.hpp"
#include "bpe/encode_blocks.hpp"
#include "bpe/id_buffer.hpp"
#include "bpe/merge.hpp"
#include "bpe/prefix_matcher.hpp"
#include "bpe/splitter.hpp"
#include "bpe/word_cache.hpp"
#include "text/texts.hpp"

namespace vikhr {

using LongWordCache = WordCache<8>;  // 8 MiB

// What encodes words of any length, one after another: those of a usual length wait in a queue until the memory of the
// cache that they need is likely to have arrived.
class ByteWorker {
 public:
  ByteWorker(const ByteVocabulary& vocabulary, SplitKind kind, const PrefixMatcher& added, ShortWordCache& words,
             LongWordCache& long_words)
      : vocabulary_(vocabulary), kind_(kind), added_(added), words_(words), long_words_(long_words), merger_(vocabulary) {}

  // Begins a run of documents whose ids go to `out` and whose ends there to `ends`.
  void begin(IdBuffer& out, std::int64_t* ends) {
    out_ = &out;
    ends_ = ends;
    waiting_ = num_long_ = 0;  // an exception may have left some
  }
  // Takes the next document. TextError on text that cannot be encoded.
  void encode(const Text& text, std::size_t document, InvalidUtf8 policy);
  // Writes what still waits.
  void finish() { empty_queue(); }

  // Appends the ids of one word.
  void merge(std::string_view word, IdBuffer& ids);

 private:
  static constexpr std::size_t kQueue = 64;
  static constexpr std::size_t kLongQueue = 16;
  static constexpr std::size_t kIdMark = std::size_t{1} << 63;
  static constexpr std::size_t kLongMark = std::size_t{1} << 62;
  static constexpr Id kTextOnly = INT32_MAX;

  // A word and its place in the short cache; or, of no length, a mark: an id, a longer word that waits elsewhere, or
  // the end of a document.
  struct Waiting {
    ShortWordCache::Key key;
    std::size_t place;
  };
  struct LongWaiting {
    LongWordCache::Key key;
    std::size_t place;
  };

  friend class ByteEncoder;
  void take_text(std::string_view text);
  void take(std::string_view word, std::size_t readable);
  void push_mark(std::size_t mark);
  void empty_queue();
  void append_mark(std::size_t mark);
  void append_word(const Waiting& waiting);
  void append_long(const LongWaiting& waiting);
  bool append_known(const LongWaiting& waiting);
  void append_merged(std::string_view word);  // keeps its ids in `ids_`
  void remember(const LongWaiting& waiting);
  static LongWaiting long_waiting(std::string_view word, std::size_t readable);
  void shrink();

  const ByteVocabulary& vocabulary_;
  const SplitKind kind_;
  const PrefixMatcher& added_;
  ShortWordCache& words_;
  LongWordCache& long_words_;
  Transcoder transcoder_;
  Merger<ByteVocabulary> merger_;
  std::string repaired_;
  std::vector<Symbol> symbols_;
  IdBuffer ids_;

  std::array<Waiting, kQueue> queue_;
  std::size_t waiting_ = 0;
  std::array<LongWaiting, kLongQueue> long_queue_;
  std::size_t num_long_ = 0;
  IdBuffer* out_ = nullptr;
  std::int64_t* ends_ = nullptr;
};

class ByteEncoder {
 public:
  // A text that is found as it stands, whatever is around it.
  struct Added {
    std::string text;
    Id id;  // -1: of a control token, which stays text, but in which no other is found
  };

  // ModelError as ByteVocabulary.
  ByteEncoder(std::vector<std::pair<std::string, Id>> tokens, const std::vector<ByteVocabulary::Merge>& merges,
              bool takes_whole, SplitKind kind, const std::vector<Added>& added);

  // As BpeEncoder::encode.
  IdBuffer encode(const Texts& texts, InvalidUtf8 policy, unsigned threads, std::int64_t* offsets) const;

  // The ids of one word, which is not split.
  IdBuffer merge(std::string_view word) const;

 private:
  std::unique_ptr<ByteWorker> make_worker() const;

  ByteVocabulary vocabulary_;
  SplitKind kind_;
  PrefixMatcher added_;
  mutable ShortWordCache words_;
  mutable LongWordCache long_words_;
  mutable WorkerPool<ByteWorker> workers_;
};

// The numbers of the texts that normalising to NFC may change; a text that is not valid UTF-8 is none of them.
std::vector<std::size_t> may_compose(const Texts& texts);

}  // namespace vikhr
