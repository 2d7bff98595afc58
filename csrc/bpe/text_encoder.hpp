// What one thread needs to encode one document after another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bpe/id_buffer.hpp"
#include "bpe/merge.hpp"
#include "bpe/normalize.hpp"
#include "text/scan.hpp"
#include "text/texts.hpp"
#include "bpe/vocabulary.hpp"
#include "bpe/word_cache.hpp"

namespace vikhr {

// How SentencePiece splits an UNUSED piece again: as it was put together. That is always the same
// way: merges inside a piece come in the same order whatever stands around it.
using UnusedPieces = WordMap<Merger<Vocabulary>::Pair>;

// Text is cut into units that no piece crosses, and the units wait in a queue until the memory of
// the cache that they need is likely to have arrived.
class Worker {
 public:
  Worker(const Vocabulary& vocabulary, const UnusedPieces& unused, ShortWordCache& cache);

  // Begins a run of documents whose ids go to `out` and whose ends there to `ends`.
  void begin(IdBuffer& out, std::int64_t* ends);
  // Takes the next document. TextError on text that cannot be encoded.
  void encode(const Text& text, std::size_t document, InvalidUtf8 policy);
  // Writes what still waits.
  void finish() { empty_queue(); }

 private:
  static constexpr std::size_t kQueue = 64;

  void shrink();
  void encode_between_user_defined(std::string_view text);
  void encode_text(std::string_view text, bool needs_space);
  void encode_units(std::string_view text, bool needs_space);
  void take_first(std::string_view unit);
  void take(std::string_view unit, std::size_t readable);
  void take_long(std::string_view unit, std::size_t readable);

  // A place in the queue is a unit and where the cache has it, or, of length 0, a mark: an id, or
  // the end of a document.
  void push(std::string_view word, std::size_t readable);
  void push_mark(std::size_t mark);
  static constexpr std::size_t kIdMark = std::size_t{1} << 63;
  void empty_queue();

  void merge_unit(std::string_view unit);
  void emit(Symbol symbol, int depth);
  void emit_unknown(std::string_view text);
  void append(const Id* ids, std::size_t count);

  const Vocabulary& vocabulary_;
  const UnusedPieces& unused_;
  ShortWordCache& cache_;
  Transcoder transcoder_;
  Normalizer normalizer_;
  Merger<Vocabulary> merger_;
  UnitScanner scanner_;
  const bool fuses_unknown_;

  std::array<ShortWordCache::Key, kQueue> keys_;
  std::array<std::size_t, kQueue> places_;
  std::size_t waiting_ = 0;

  std::array<Id, 128> single_;  // the id of an ASCII character alone; -1 where that is not so simple
  std::string first_unit_;
  std::vector<Symbol> symbols_;
  IdBuffer ids_;

  IdBuffer* out_ = nullptr;
  std::int64_t* ends_ = nullptr;
  std::size_t document_start_ = 0;
};

}  // namespace vikhr
