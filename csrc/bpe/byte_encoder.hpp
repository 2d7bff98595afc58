// Byte-level BPE encoding of texts, as Hugging Face's `tokenizers` does it, on any number of threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
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

// Encoded words: each in the first of these whose entries have room for it and its ids.
struct WordCaches {
  using Tiny = WordCache<2>;   // 16 MiB
  using Short = WordCache<4>;  // 16 MiB
  using Long = WordCache<8>;   // 8 MiB
  Tiny tiny_words;
  Short short_words;
  Long long_words;
};

// What encodes words of any length, one after another: those of a usual length wait in a queue until the memory of the
// cache that they need is likely to have arrived.
class ByteWorker {
 public:
  ByteWorker(const ByteVocabulary& vocabulary, SplitKind kind, const PrefixMatcher& added, WordCaches& caches)
      : vocabulary_(vocabulary), kind_(kind), added_(added), caches_(caches), merger_(vocabulary) {}

  // Begins a run of documents whose ids go to `out` and whose ends there to `ends`.
  void begin(IdBuffer& out, std::int64_t* ends) {
    out_ = &out;
    ends_ = ends;
    waiting_ = 0;  // an exception may have left some
  }
  // Takes the next document. TextError on text that cannot be encoded.
  void encode(const Text& text, std::size_t document, InvalidUtf8 policy);
  // Writes what still waits.
  void finish() { empty_queue(); }

  // Appends the ids of one word.
  void merge(std::string_view word, IdBuffer& ids);

 private:
  static constexpr std::size_t kQueue = 64;
  static constexpr std::size_t kMostHuge = 1 << 20;  // bytes of words and ids that `huge_words_` keeps
  static constexpr Id kTextOnly = INT32_MAX;

  // What is to be appended: a word by its key and place in one of the caches, an id, or the end of a document.
  struct Waiting {
    enum class Kind : std::uint8_t { tiny_word, short_word, long_word, id, end };
    union {
      WordCaches::Tiny::Key tiny_key;
      WordCaches::Short::Key short_key;
      WordCaches::Long::Key long_key;
    };
    std::size_t place;  // or the id, or the document's number
    Kind kind;
  };

  friend class ByteEncoder;
  void take_text(std::string_view text);
  void take(std::string_view word, std::size_t readable);
  void take_longer(std::string_view word, std::size_t readable);
  template <typename Cache>
  void queue_word(const Cache& cache, typename Cache::Key& key, Waiting::Kind kind, std::string_view word,
                  std::size_t readable);
  void queue(Waiting::Kind kind, std::size_t value);
  void empty_queue();
  template <typename Cache>
  void append_word(Cache& cache, const typename Cache::Key& key, std::size_t place);
  void append_unknown(std::string_view word, bool has_many);
  void append_huge(std::string_view word);
  void append_merged(std::string_view word);  // keeps its ids in `ids_`
  void shrink();

  const ByteVocabulary& vocabulary_;
  const SplitKind kind_;
  const PrefixMatcher& added_;
  WordCaches& caches_;
  Transcoder transcoder_;
  Merger<ByteVocabulary> merger_;
  std::string repaired_;
  std::vector<Symbol> symbols_;
  IdBuffer ids_;

  // Words too long for any cache: lines of dashes and the like, which come again.
  std::unordered_map<std::string, std::vector<Id>> huge_words_;
  std::size_t huge_bytes_ = 0;

  std::array<Waiting, kQueue> queue_;
  std::size_t waiting_ = 0;
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
  mutable WordCaches caches_;
  mutable WorkerPool<ByteWorker> workers_;
};

// The numbers of the texts that normalising to NFC may change; a text that is not valid UTF-8 is none of them.
std::vector<std::size_t> may_compose(const Texts& texts);

}  // namespace vikhr
