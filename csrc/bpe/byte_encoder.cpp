#include "bpe/byte_encoder.hpp"

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
        push_mark(kIdMark | static_cast<std::size_t>(match.id));
        start = at + match.length;
      }
      at += match.length;
    }
    take_text(utf8.substr(start));
  }
  push_mark(document);
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
void ByteWorker::take(std::string_view word, std::size_t readable) {
  if (word.size() == 1) {
    if (const Id id = vocabulary_.byte_id(static_cast<unsigned char>(word[0])); id >= 0) {
      return push_mark(kIdMark | static_cast<std::size_t>(id));
    }
  }
  if (word.size() > LongWordCache::kMaxWord) {
    empty_queue();
    return merge(word, *out_);
  }
  if (word.size() > ShortWordCache::kMaxWord) {
    const LongWaiting& waiting = long_queue_[num_long_] = long_waiting(word, readable);
    long_words_.prefetch(waiting.place);
    return push_mark(kLongMark | num_long_++);
  }
  Waiting& waiting = queue_[waiting_];
  ShortWordCache::make_key(word, readable, waiting.key);
  waiting.place = ShortWordCache::index_of(waiting.key);
  words_.prefetch(waiting.place);
  if (++waiting_ == kQueue) empty_queue();
}

ByteWorker::LongWaiting ByteWorker::long_waiting(std::string_view word, std::size_t readable) {
  LongWordCache::Key key;
  LongWordCache::make_key(word, readable, key);
  return {key, LongWordCache::index_of(key)};
}

void ByteWorker::push_mark(std::size_t mark) {
  queue_[waiting_].key.back() = 0;
  queue_[waiting_].place = mark;
  if (++waiting_ == kQueue || num_long_ == kLongQueue) empty_queue();
}

void ByteWorker::empty_queue() {
  const std::size_t count = std::exchange(waiting_, 0);
  for (std::size_t i = 0; i < count; ++i) {
    const Waiting& waiting = queue_[i];
    if (waiting.key.back() != 0) {
      append_word(waiting);
    } else {
      append_mark(waiting.place);
    }
  }
  num_long_ = 0;
}

void ByteWorker::append_mark(std::size_t mark) {
  if ((mark & kIdMark) != 0) {
    out_->append(static_cast<Id>(mark & ~kIdMark));
  } else if ((mark & kLongMark) != 0) {
    append_long(long_queue_[mark & ~kLongMark]);
  } else {
    ends_[mark] = static_cast<std::int64_t>(out_->size());
  }
}

void ByteWorker::append_word(const Waiting& waiting) {
  if (const std::size_t known = words_.find(waiting.key, waiting.place, out_->reserve(ShortWordCache::kMaxIds + 1))) {
    return out_->advance(known);
  }
  const std::string_view word = ShortWordCache::word_of(waiting.key);
  if (word.size() <= ShortWordCache::kMaxIds) {
    append_merged(word);
    if (ids_.size() > 0) words_.insert(waiting.key, waiting.place, ids_.data(), ids_.size());
    return;
  }
  const LongWaiting also = long_waiting(word, word.size());  // where it is if it has many ids
  if (append_known(also)) return;
  append_merged(word);
  if (ids_.size() > ShortWordCache::kMaxIds) {
    remember(also);
  } else if (ids_.size() > 0) {
    words_.insert(waiting.key, waiting.place, ids_.data(), ids_.size());
  }
}

void ByteWorker::append_long(const LongWaiting& waiting) {
  if (append_known(waiting)) return;
  append_merged(LongWordCache::word_of(waiting.key));
  remember(waiting);
}

bool ByteWorker::append_known(const LongWaiting& waiting) {
  const std::size_t known = long_words_.find(waiting.key, waiting.place, out_->reserve(LongWordCache::kMaxIds + 1));
  out_->advance(known);
  return known > 0;
}

void ByteWorker::append_merged(std::string_view word) {
  ids_.clear();
  merge(word, ids_);
  out_->append(ids_.data(), ids_.size());
}

void ByteWorker::remember(const LongWaiting& waiting) {
  if (ids_.size() > 0 && ids_.size() <= LongWordCache::kMaxIds) {
    long_words_.insert(waiting.key, waiting.place, ids_.data(), ids_.size());
  }
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
  return std::make_unique<ByteWorker>(vocabulary_, kind_, added_, words_, long_words_);
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
