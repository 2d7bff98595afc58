#include "bpe.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

#include "word_cache.hpp"

namespace vikhr {
namespace {

// Documents are handed to threads in blocks of about this many bytes.
constexpr std::size_t kBlockBytes = 1 << 20;
constexpr std::size_t kHugeText = 1 << 20;

// Where the word at `start` ends: at the next space that follows something else.
std::size_t word_end(std::string_view text, std::size_t start) {
  std::size_t at = start;
  while (at < text.size() && text[at] == ' ') ++at;
  if (at == text.size()) return at;
  const void* space = std::memchr(text.data() + at, ' ', text.size() - at);
  if (space == nullptr) return text.size();
  return static_cast<std::size_t>(static_cast<const char*>(space) - text.data());
}

bool starts_with_space_symbol(std::string_view piece) {
  return piece.substr(0, kSpaceSymbolUtf8.size()) == kSpaceSymbolUtf8;
}

void to_symbols(std::string_view text, const Vocabulary& vocabulary,
                std::vector<Symbol>& symbols) {
  symbols.clear();
  for (std::size_t at = 0; at < text.size();) {
    const Character character = decode_valid_character(text.data() + at);
    symbols.push_back(vocabulary.symbol(character.code_point));
    at += character.length;
  }
}

std::vector<std::size_t> cut_in_blocks(const Texts& texts) {
  std::vector<std::size_t> starts{0};
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    bytes += texts[i].size() + 16;  // a document costs something even if it is empty
    if (bytes >= kBlockBytes && i + 1 < texts.size()) {
      starts.push_back(i + 1);
      bytes = 0;
    }
  }
  starts.push_back(texts.size());
  return starts;
}

// Runs `work` on `count` threads, this one among them; on fewer where the system has no more.
template <typename Work>
void run_on_threads(std::size_t count, const Work& work) {
  std::vector<std::thread> threads;
  threads.reserve(count);
  try {
    while (threads.size() + 1 < count) threads.emplace_back(work);
  } catch (const std::exception&) {
  }
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

// What one thread needs to encode one document after another.
class BpeEncoder::Worker {
 public:
  explicit Worker(const BpeEncoder& encoder)
      : vocabulary_(encoder.vocabulary_),
        unused_(encoder.unused_),
        normalizer_(vocabulary_),
        merger_(vocabulary_) {}

  void encode(std::string_view text, std::size_t document, InvalidUtf8 policy, IdBuffer& out) {
    out_ = &out;
    pending_count_ = 0;  // an exception may have left some
    document_start_ = out.size();
    const auto [normalized, needs_space] = normalizer_.normalize(text, document, policy);
    if (!vocabulary_.user_defined().empty()) {
      encode_between_user_defined(normalized);
    } else {
      encode_words(normalized, needs_space);
    }
    if (text.size() > kHugeText) shrink();
  }

 private:
  // Gives back what a huge text needed and the next texts won't.
  void shrink() {
    normalizer_.shrink();
    merger_.shrink();
    std::string().swap(first_word_);
    std::vector<Symbol>().swap(symbols_);
    ids_ = IdBuffer();
  }

  // User-defined symbols are never merged, so the texts between them are independent.
  void encode_between_user_defined(std::string_view text) {
    std::size_t start = 0;
    std::size_t at = 0;
    while (at < text.size()) {
      const PrefixMatcher::Match match = vocabulary_.user_defined().match(text.substr(at));
      if (match.length == 0) {
        at += decode_valid_character(text.data() + at).length;
        continue;
      }
      encode_words(text.substr(start, at - start), false);
      out_->append(match.id);
      start = at += match.length;
    }
    encode_words(text.substr(start), false);
  }

  void encode_words(std::string_view text, bool needs_space) {
    const bool cuts = vocabulary_.cuts_at_spaces();
    std::size_t at = 0;
    if (needs_space) {
      at = cuts ? word_end(text, 0) : text.size();
      first_word_.assign(1, ' ').append(text.substr(0, at));
      encode_word(first_word_, first_word_.size());
      encode_pending();  // before its memory changes
    }
    while (at < text.size()) {
      const std::size_t end = cuts ? word_end(text, at) : text.size();
      encode_word(text.substr(at, end - at), text.size() - at);
      at = end;
    }
    encode_pending();
  }

  // `readable`: how many bytes from the word's start on belong to the text.
  void encode_word(std::string_view word, std::size_t readable) {
    if (word.size() <= WordCache::kMaxWord) {
      encode_short(word, readable);
    } else {
      encode_long(word, readable);
    }
  }

  // Short words wait in a queue until the cache's memory is likely to have arrived.
  void encode_short(std::string_view word, std::size_t readable) {
    Pending& pending = pending_[pending_count_++];
    pending.word = word;
    pending.key = WordCache::make_key(word, readable);
    pending.index = WordCache::index_of(pending.key);
    cache_.prefetch(pending.index);
    if (pending_count_ == pending_.size()) encode_pending();
  }

  void encode_pending() {
    for (std::size_t i = 0; i < pending_count_; ++i) {
      const Pending& pending = pending_[i];
      if (const WordCache::Entry* known = cache_.find(pending.key, pending.index)) {
        append(known->ids.data(), known->count);
        continue;
      }
      merge_text(pending.word);
      if (ids_.size() > WordCache::kMaxIds) continue;
      cache_.insert(pending.key, pending.index, ids_.data(), ids_.size());
    }
    pending_count_ = 0;
  }

  // A long word is cut further wherever no piece has the two characters side by side.
  void encode_long(std::string_view word, std::size_t readable) {
    std::size_t start = 0;
    Character left = decode_valid_character(word.data());
    for (std::size_t at = left.length;; at += left.length) {
      const bool is_end = at == word.size();
      const Character right = is_end ? Character{} : decode_valid_character(word.data() + at);
      if (is_end || vocabulary_.is_cut(left.code_point, right.code_point)) {
        const std::string_view part = word.substr(start, at - start);
        if (part.size() <= WordCache::kMaxWord) {
          encode_short(part, readable - start);
        } else {
          encode_pending();
          merge_text(part);
        }
        start = at;
      }
      if (is_end) return;
      left = right;
    }
  }

  // Leaves the ids in `ids_`, too.
  void merge_text(std::string_view text) {
    to_symbols(text, vocabulary_, symbols_);
    merger_.merge(symbols_);
    ids_.clear();
    for (const Symbol symbol : symbols_) emit(symbol, 0);
    append(ids_.data(), ids_.size());
  }

  void emit(Symbol symbol, int depth) {
    constexpr int kMaxDepth = 100;  // SentencePiece's own limit for hostile models
    if ((symbol & kBareCharacter) != 0) {
      unsigned char bytes[4];
      const unsigned length = encode_character(symbol & ~kBareCharacter, bytes);
      emit_unknown({reinterpret_cast<const char*>(bytes), length});
      return;
    }
    const Id id = static_cast<Id>(symbol);
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type != PieceType::unused || depth > kMaxDepth) {
      ids_.append(id);
    } else if (const Merger::Pair* parts = unused_.find(symbol)) {
      emit(parts->left, depth + 1);
      emit(parts->right, depth + 1);
    } else {
      emit_unknown(piece.text);
    }
  }

  void emit_unknown(std::string_view text) {
    const Id unknown = vocabulary_.unknown_id();
    if (vocabulary_.model().byte_fallback) {
      for (const char byte : text) {
        ids_.append(vocabulary_.byte_id(static_cast<unsigned char>(byte)));
      }
    } else if (ids_.size() == 0 || ids_.data()[ids_.size() - 1] != unknown) {
      ids_.append(unknown);  // one for a run of unknown characters
    }
  }

  // Appends a word's ids; a run of unknown characters may go on from the word before.
  void append(const Id* ids, std::size_t count) {
    const bool follows = out_->size() > document_start_;
    if (follows && count > 0 && !vocabulary_.model().byte_fallback &&
        ids[0] == vocabulary_.unknown_id() && out_->data()[out_->size() - 1] == ids[0]) {
      ++ids;
      --count;
    }
    out_->append(ids, count);
  }

  const Vocabulary& vocabulary_;
  const WordMap<Merger::Pair>& unused_;
  Normalizer normalizer_;
  Merger merger_;
  WordCache cache_;
  std::string first_word_;
  std::vector<Symbol> symbols_;
  IdBuffer ids_;

  struct Pending {
    std::string_view word;
    WordCache::Key key;
    std::size_t index;
  };
  std::array<Pending, 32> pending_;
  std::size_t pending_count_ = 0;

  IdBuffer* out_ = nullptr;
  std::size_t document_start_ = 0;
};

// Borrows an idle worker, or makes one.
class BpeEncoder::Lease {
 public:
  explicit Lease(const BpeEncoder& encoder) : encoder_(encoder) {
    {
      const std::lock_guard<std::mutex> lock(encoder_.mutex_);
      if (!encoder_.idle_.empty()) {
        worker_ = std::move(encoder_.idle_.back());
        encoder_.idle_.pop_back();
      }
    }
    if (worker_ == nullptr) worker_ = std::make_unique<Worker>(encoder_);
  }
  ~Lease() {
    const std::lock_guard<std::mutex> lock(encoder_.mutex_);
    try {
      encoder_.idle_.push_back(std::move(worker_));
    } catch (const std::bad_alloc&) {  // then it is not kept
    }
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Worker* operator->() { return worker_.get(); }

 private:
  const BpeEncoder& encoder_;
  std::unique_ptr<Worker> worker_;
};

BpeEncoder::BpeEncoder(std::string_view model_file) : vocabulary_(parse_model(model_file)) {
  surfaces_.reserve(static_cast<std::size_t>(vocabulary_.size()));
  for (Id id = 0; id < vocabulary_.size(); ++id) {
    std::string surface;
    append_with_spaces(vocabulary_.piece(id).text, surface);
    surfaces_.push_back(std::move(surface));
  }
  split_unused();
}

void BpeEncoder::split_unused() {
  Merger merger(vocabulary_);
  std::vector<Symbol> symbols;
  for (Id id = 0; id < vocabulary_.size(); ++id) {
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type != PieceType::unused) continue;
    to_symbols(piece.text, vocabulary_, symbols);
    if (symbols.size() < 2) continue;
    const Merger::Pair last = merger.merge(symbols);
    if (symbols.size() == 1) unused_.insert(static_cast<std::uint64_t>(id), last);
  }
}

BpeEncoder::~BpeEncoder() = default;

IdBuffer BpeEncoder::encode(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                            std::int64_t* offsets) const {
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  // One thread fills one buffer, which needs no joining.
  const std::vector<std::size_t> starts =
      threads == 1 ? std::vector<std::size_t>{0, texts.size()} : cut_in_blocks(texts);
  const std::size_t blocks = starts.size() - 1;
  std::vector<IdBuffer> outputs(blocks);
  std::vector<std::exception_ptr> errors(blocks);
  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> first_failed{blocks};  // every block before it is still encoded
  const auto encode_block = [&](Lease& worker, std::size_t block) {
    IdBuffer& out = outputs[block];
    for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
      const std::size_t before = out.size();
      worker->encode(texts[i], i, policy, out);
      offsets[i + 1] = static_cast<std::int64_t>(out.size() - before);
    }
  };
  run_on_threads(std::min<std::size_t>(threads, blocks), [&]() {
    std::size_t block = next++;
    if (block >= blocks) return;
    try {
      Lease worker(*this);
      for (; block < first_failed; block = next++) encode_block(worker, block);
    } catch (...) {
      errors[block] = std::current_exception();
      std::size_t failed = first_failed;
      while (block < failed && !first_failed.compare_exchange_weak(failed, block)) {
      }
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error != nullptr) std::rethrow_exception(error);
  }

  offsets[0] = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) offsets[i + 1] += offsets[i];
  if (blocks == 1) return std::move(outputs[0]);
  IdBuffer joined(static_cast<std::size_t>(offsets[texts.size()]));
  std::size_t at = 0;
  for (IdBuffer& output : outputs) {
    if (output.size() > 0) {
      std::memcpy(joined.data() + at, output.data(), output.size() * sizeof(std::int32_t));
    }
    at += output.size();
    output = IdBuffer();  // memory goes back as the joined pages are touched
  }
  return joined;
}

void BpeEncoder::decode(const std::int64_t* ids, std::size_t count, std::string& text) const {
  const Model& model = vocabulary_.model();
  const bool drops_prefix = model.add_dummy_prefix || model.remove_extra_whitespaces;
  const std::size_t start = text.size();
  bool may_drop = true;
  std::string bytes;
  for (std::size_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary_.size()) {
      throw IdError("id " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                    " is not one of the vocabulary's " + std::to_string(vocabulary_.size()));
    }
    const Id id = static_cast<Id>(ids[i]);
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type == PieceType::byte) {
      bytes.push_back(static_cast<char>(vocabulary_.byte_value(id)));
      continue;
    }
    append_repaired(bytes, text);
    bytes.clear();
    if (text.size() > start) may_drop = false;
    if (piece.type == PieceType::control) continue;
    const bool drops = may_drop && drops_prefix && starts_with_space_symbol(piece.text);
    if (piece.type == PieceType::unknown) {
      text.append(model.unknown_surface);
    } else {
      text.append(surfaces_[static_cast<std::size_t>(id)], drops ? 1 : 0);
    }
    if ((drops && !model.remove_extra_whitespaces) || text.size() > start) may_drop = false;
  }
  append_repaired(bytes, text);
}

}  // namespace vikhr
