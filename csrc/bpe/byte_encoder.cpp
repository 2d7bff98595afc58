#include "bpe/byte_encoder.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "text/scan.hpp"
#include "text/utf8.hpp"

namespace vikhr {
namespace {

constexpr std::size_t kHugeText = 1 << 20;

}  // namespace

void ByteWorker::encode(const Text& text, std::size_t document, InvalidUtf8 policy) {
  refuse_huge(text.length, document);
  std::string_view utf8 = transcoder_.utf8(text);
  if (const Utf8Scan scan = scan_utf8(utf8); scan.first_invalid != utf8.size()) {
    if (policy == InvalidUtf8::raise) refuse_invalid(document, scan.first_invalid);
    repaired_.clear();
    append_repaired(utf8, repaired_);
    utf8 = repaired_;
  }
  if (added_.empty()) {
    take_text(utf8);
  } else {
    std::size_t start = 0;
    for (std::size_t at = 0; at < utf8.size();) {
      const PrefixMatcher::Match match = added_.match(utf8.substr(at));
      if (match.length == 0) {
        ++at;
        continue;
      }
      if (match.id != kTextOnly) {
        take_text(utf8.substr(start, at - start));
        queue(Waiting::Kind::id, static_cast<std::size_t>(match.id));
        start = at + match.length;
      }
      at += match.length;
    }
    take_text(utf8.substr(start));
  }
  queue(Waiting::Kind::end, document);
  if (text.length > kHugeText) shrink();
}

// Gives back what a huge text needed and the next texts won't.
void ByteWorker::shrink() {
  transcoder_.shrink();
  merger_.shrink();
  std::string().swap(repaired_);
  std::vector<Symbol>().swap(symbols_);
  ids_ = IdBuffer();
}

void ByteWorker::take_text(std::string_view text) {
  const char* const end = text.data() + text.size();
  split(kind_, text, [&](std::string_view word) { take(word, static_cast<std::size_t>(end - word.data())); });
}

// `readable`: how many bytes may be read from the word's start on.
inline void ByteWorker::take(std::string_view word, std::size_t readable) {
  if (word.size() <= WordCaches::Tiny::kMaxWord) {
    queue_word(caches_.tiny_words, queue_[waiting_].tiny_key, Waiting::Kind::tiny_word, word, readable);
  } else {
    take_longer(word, readable);
  }
}

void ByteWorker::take_longer(std::string_view word, std::size_t readable) {
  Waiting& next = queue_[waiting_];
  if (word.size() <= WordCaches::Short::kMaxWord) {
    queue_word(caches_.short_words, next.short_key, Waiting::Kind::short_word, word, readable);
  } else if (word.size() <= WordCaches::Long::kMaxWord) {
    queue_word(caches_.long_words, next.long_key, Waiting::Kind::long_word, word, readable);
  } else {
    empty_queue();
    append_huge(word);
  }
}

template <typename Cache>
inline void ByteWorker::queue_word(const Cache& cache, typename Cache::Key& key, Waiting::Kind kind,
                                   std::string_view word, std::size_t readable) {
  Cache::make_key(word, readable, key);
  const std::size_t place = Cache::index_of(key);
  cache.prefetch(place);
  queue(kind, place);
}

inline void ByteWorker::queue(Waiting::Kind kind, std::size_t value) {
  queue_[waiting_].kind = kind;
  queue_[waiting_].place = value;
  if (++waiting_ == kQueue) empty_queue();
}

void ByteWorker::empty_queue() {
  const std::size_t count = std::exchange(waiting_, 0);
  for (std::size_t i = 0; i < count; ++i) {
    const Waiting& waiting = queue_[i];
    switch (waiting.kind) {
      case Waiting::Kind::tiny_word: append_word(caches_.tiny_words, waiting.tiny_key, waiting.place); break;
      case Waiting::Kind::short_word: append_word(caches_.short_words, waiting.short_key, waiting.place); break;
      case Waiting::Kind::long_word: append_word(caches_.long_words, waiting.long_key, waiting.place); break;
      case Waiting::Kind::id: out_->append(static_cast<Id>(waiting.place)); break;
      case Waiting::Kind::end: ends_[waiting.place] = static_cast<std::int64_t>(out_->size());
    }
  }
}

template <typename Cache>
inline void ByteWorker::append_word(Cache& cache, const typename Cache::Key& key, std::size_t place) {
  const std::size_t known = cache.find(key, place, out_->reserve(Cache::kMaxIds + 1));
  if (known - 1 < Cache::kMaxIds) return out_->advance(known);
  append_unknown(Cache::word_of(key), known != 0);
}

// The key in any cache of a word that waits.
template <typename Cache>
typename Cache::Key key_of(std::string_view waiting_word) {
  typename Cache::Key key;
  Cache::make_key(waiting_word, sizeof(WordCaches::Long::Key), key);  // there is room for the longest behind it
  return key;
}

// `has_many`: more ids than the cache for its length holds, so that another one may have them.
void ByteWorker::append_unknown(std::string_view word, bool has_many) {
  using Tiny = WordCaches::Tiny;
  using Short = WordCaches::Short;
  using Long = WordCaches::Long;
  const auto find = [&](auto& cache) {
    const auto key = key_of<std::decay_t<decltype(cache)>>(word);
    return cache.find(key, cache.index_of(key), out_->reserve(cache.kMaxIds + 1));
  };
  std::size_t known = has_many ? word.size() <= Tiny::kMaxWord ? find(caches_.short_words) : Short::kMore : 0;
  if (known == Short::kMore) known = find(caches_.long_words);
  if (known != 0) return out_->advance(known);

  append_merged(word);
  const std::size_t count = ids_.size();
  if (count == 0 || count > Long::kMaxIds) return;
  const auto remember = [&](auto& cache) {
    const auto key = key_of<std::decay_t<decltype(cache)>>(word);
    cache.insert(key, cache.index_of(key), ids_.data(), std::min(count, cache.kMore));
    return count <= cache.kMaxIds;
  };
  if (word.size() <= Tiny::kMaxWord && remember(caches_.tiny_words)) return;
  if (word.size() <= Short::kMaxWord && remember(caches_.short_words)) return;
  remember(caches_.long_words);
}

void ByteWorker::append_huge(std::string_view word) {
  if (word.size() > kMostHuge) return merge(word, *out_);
  std::string key(word);
  if (const auto known = huge_words_.find(key); known != huge_words_.end()) {
    return out_->append(known->second.data(), known->second.size());
  }
  append_merged(word);
  const std::size_t bytes = word.size() + ids_.size() * sizeof(Id);
  if (bytes > kMostHuge) return;
  if (huge_bytes_ + bytes > kMostHuge) {
    huge_words_.clear();
    huge_bytes_ = 0;
  }
  huge_words_.emplace(std::move(key), std::vector<Id>(ids_.data(), ids_.data() + ids_.size()));
  huge_bytes_ += bytes;
}

void ByteWorker::append_merged(std::string_view word) {
  ids_.clear();
  merge(word, ids_);
  out_->append(ids_.data(), ids_.size());
}

void ByteWorker::merge(std::string_view word, IdBuffer& ids) {
  if (const Id whole = vocabulary_.whole(word); whole >= 0) return ids.append(whole);
  merger_.merge(word, symbols_);
  for (const Symbol symbol : symbols_) ids.append(static_cast<Id>(symbol));
}

ByteEncoder::ByteEncoder(std::vector<std::pair<std::string, Id>> tokens,
                         const std::vector<ByteVocabulary::Merge>& merges, bool takes_whole, SplitKind kind,
                         const std::vector<Added>& added)
    : vocabulary_(std::move(tokens), merges, takes_whole), kind_(kind) {
  for (const auto& [text, id] : added) added_.add(text, id >= 0 ? id : ByteWorker::kTextOnly);
}

std::unique_ptr<ByteWorker> ByteEncoder::make_worker() const {
  return std::make_unique<ByteWorker>(vocabulary_, kind_, added_, caches_);
}

IdBuffer ByteEncoder::encode(const Texts& texts, InvalidUtf8 policy, unsigned threads, std::int64_t* offsets) const {
  return workers_.encode(texts, policy, threads, offsets, [this] { return make_worker(); });
}

IdBuffer ByteEncoder::merge(std::string_view word) const {
  IdBuffer ids;
  if (!word.empty()) make_worker()->merge(word, ids);
  return ids;
}

std::vector<std::size_t> may_compose(const Texts& texts) {
  constexpr unsigned char kFirstLead = 0xCC;  // of U+0300; no character before it composes with what is before it
  const SplitClasses& classes = SplitClasses::instance();
  std::vector<std::size_t> found;
  Transcoder transcoder;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string_view text = transcoder.utf8(texts[i]);
    if (!is_valid_utf8(text)) continue;
    for (std::size_t at = 0; at < text.size();) {
      if (static_cast<unsigned char>(text[at]) < kFirstLead) {
        ++at;
        continue;
      }
      const Character character = decode_valid_character(text.data() + at);
      if (classes.may_compose(character.code_point)) {
        found.push_back(i);
        break;
      }
      at += character.length;
    }
  }
  return found;
}

}  // namespace vikhr
