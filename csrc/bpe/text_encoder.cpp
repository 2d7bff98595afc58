#include "bpe/text_encoder.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace vikhr {
namespace {

constexpr std::size_t kHugeText = 1 << 20;

}  // namespace

Worker::Worker(const Vocabulary& vocabulary, const UnusedPieces& unused, ShortWordCache& cache)
    : vocabulary_(vocabulary),
      unused_(unused),
      cache_(cache),
      normalizer_(vocabulary),
      merger_(vocabulary),
      scanner_(vocabulary.separate()),
      fuses_unknown_(!vocabulary.model().byte_fallback) {
  IdBuffer alone;
  begin(alone, nullptr);
  for (std::size_t i = 0; i < single_.size(); ++i) {
    const char character = static_cast<char>(i);
    merge_unit({&character, 1});
    single_[i] = ids_.size() == 1 && ids_.data()[0] != vocabulary.unknown_id() ? ids_.data()[0] : -1;
  }
}

void Worker::begin(IdBuffer& out, std::int64_t* ends) {
  out_ = &out;
  ends_ = ends;
  waiting_ = 0;  // an exception may have left some
  document_start_ = out.size();
}

void Worker::encode(const Text& text, std::size_t document, InvalidUtf8 policy) {
  refuse_huge(text.length, document);
  const auto [normalized, needs_space] =
      normalizer_.normalize(transcoder_.utf8(text), document, policy);
  if (!vocabulary_.user_defined().empty()) {
    encode_between_user_defined(normalized);
  } else {
    encode_text(normalized, needs_space);
  }
  push_mark(document);
  if (text.length > kHugeText) shrink();
}

// Gives back what a huge text needed and the next texts won't.
void Worker::shrink() {
  transcoder_.shrink();
  normalizer_.shrink();
  merger_.shrink();
  std::string().swap(first_unit_);
  std::vector<Symbol>().swap(symbols_);
  ids_ = IdBuffer();
}

// User-defined symbols are never merged, so the texts between them are independent.
void Worker::encode_between_user_defined(std::string_view text) {
  std::size_t start = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const PrefixMatcher::Match match = vocabulary_.user_defined().match(text.substr(at));
    if (match.length == 0) {
      at += decode_valid_character(text.data() + at).length;
      continue;
    }
    encode_text(text.substr(start, at - start), false);
    push_mark(kIdMark | static_cast<std::size_t>(match.id));
    start = at += match.length;
  }
  encode_text(text.substr(start), false);
}

void Worker::encode_text(std::string_view text, bool needs_space) {
  if (vocabulary_.cuts_at_spaces()) {
    encode_units(text, needs_space);
  } else if (needs_space) {
    take_first(text);
  } else if (!text.empty()) {
    take(text, text.size());
  }
}

void Worker::encode_units(std::string_view text, bool needs_space) {
  constexpr std::size_t kBlock = UnitScanner::kBlock;
  const std::size_t size = text.size();
  bool is_first = needs_space;
  std::size_t start = 0;
  const auto take_until = [&](std::size_t end) {
    const std::string_view unit = text.substr(start, end - start);
    if (is_first) {
      take_first(unit);
      is_first = false;
    } else {
      take(unit, size - start);
    }
    start = end;
  };
  scanner_.start(needs_space);
  std::array<char, kBlock> rest;
  for (std::size_t base = 0; base < size; base += kBlock) {
    const char* block = text.data() + base;
    std::uint64_t starts;
    if (size - base >= kBlock) {
      starts = scanner_.next(block);
    } else {
      rest.fill(0);
      std::memcpy(rest.data(), block, size - base);
      starts = scanner_.next(rest.data()) & ((std::uint64_t{1} << (size - base)) - 1);
    }
    for (; starts != 0; starts &= starts - 1) {
      const std::size_t end = base + static_cast<std::size_t>(__builtin_ctzll(starts));
      if (end > start || is_first) take_until(end);
    }
  }
  if (size > start || is_first) take_until(size);
}

// The first unit of a text, which gets the dummy prefix.
void Worker::take_first(std::string_view unit) {
  if (unit.size() < ShortWordCache::kMaxWord) {
    std::array<char, sizeof(ShortWordCache::Key)> text;
    text[0] = ' ';
    std::memcpy(text.data() + 1, unit.data(), unit.size());
    take({text.data(), unit.size() + 1}, text.size());
  } else {
    first_unit_.assign(1, ' ').append(unit);
    take(first_unit_, first_unit_.size());
  }
}

// `readable`: how many bytes may be read from the unit's start on.
void Worker::take(std::string_view unit, std::size_t readable) {
  if (unit.size() > ShortWordCache::kMaxWord) {
    take_long(unit, readable);
    return;
  }
  const auto byte = static_cast<unsigned char>(unit[0]);
  if (unit.size() == 1 && byte < single_.size() && single_[byte] >= 0) {
    push_mark(kIdMark | static_cast<std::size_t>(single_[byte]));
  } else {
    push(unit, readable);
  }
}

// A long unit is cut further wherever no piece has the two characters side by side.
void Worker::take_long(std::string_view unit, std::size_t readable) {
  std::size_t start = 0;
  Character left = decode_valid_character(unit.data());
  for (std::size_t at = left.length;; at += left.length) {
    const bool is_end = at == unit.size();
    const Character right = is_end ? Character{} : decode_valid_character(unit.data() + at);
    if (is_end || vocabulary_.is_cut(left.code_point, right.code_point)) {
      const std::string_view part = unit.substr(start, at - start);
      if (part.size() <= ShortWordCache::kMaxWord) {
        push(part, readable - start);
      } else {
        empty_queue();
        merge_unit(part);
        append(ids_.data(), ids_.size());
      }
      start = at;
    }
    if (is_end) return;
    left = right;
  }
}

void Worker::push(std::string_view word, std::size_t readable) {
  ShortWordCache::make_key(word, readable, keys_[waiting_]);
  const std::size_t index = ShortWordCache::index_of(keys_[waiting_]);
  cache_.prefetch(index);
  places_[waiting_] = index;
  if (++waiting_ == kQueue) empty_queue();
}

void Worker::push_mark(std::size_t mark) {
  keys_[waiting_][3] = 0;
  places_[waiting_] = mark;
  if (++waiting_ == kQueue) empty_queue();
}

void Worker::empty_queue() {
  const std::size_t count = waiting_;
  waiting_ = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const ShortWordCache::Key& key = keys_[i];
    const std::size_t place = places_[i];
    if (key[3] == 0) {
      if ((place & kIdMark) == 0) {
        document_start_ = out_->size();
        ends_[place] = static_cast<std::int64_t>(document_start_);
      } else {
        out_->append(static_cast<Id>(place & ~kIdMark));
      }
      continue;
    }
    Id* ids = out_->reserve(ShortWordCache::kMaxIds + 1);
    if (const std::size_t known = cache_.find(key, place, ids)) {
      if (fuses_unknown_) {
        std::array<Id, ShortWordCache::kMaxIds> copy;
        std::copy_n(ids, known, copy.begin());
        append(copy.data(), known);
      } else {
        out_->advance(known);
      }
      continue;
    }
    merge_unit(ShortWordCache::word_of(key));
    append(ids_.data(), ids_.size());
    if (ids_.size() <= ShortWordCache::kMaxIds) {
      cache_.insert(key, place, ids_.data(), ids_.size());
    }
  }
}

// To `ids_`.
void Worker::merge_unit(std::string_view unit) {
  merger_.merge(unit, symbols_);
  ids_.clear();
  for (const Symbol symbol : symbols_) emit(symbol, 0);
}

void Worker::emit(Symbol symbol, int depth) {
  constexpr int kMaxDepth = 100;  // SentencePiece's own limit for hostile models
  if ((symbol & kBareCharacter) != 0) {
    unsigned char bytes[4];
    const unsigned length = encode_character(symbol & ~kBareCharacter, bytes);
    emit_unknown({reinterpret_cast<const char*>(bytes), length});
    return;
  }
  const Id id = static_cast<Id>(symbol);
  if (!vocabulary_.is_unused(id) || depth > kMaxDepth) {
    ids_.append(id);
  } else if (const Merger<Vocabulary>::Pair* parts = unused_.find(symbol)) {
    emit(parts->left, depth + 1);
    emit(parts->right, depth + 1);
  } else {
    emit_unknown(vocabulary_.piece(id).text);
  }
}

void Worker::emit_unknown(std::string_view text) {
  const Id unknown = vocabulary_.unknown_id();
  if (!fuses_unknown_) {
    for (const char byte : text) {
      ids_.append(vocabulary_.byte_id(static_cast<unsigned char>(byte)));
    }
  } else if (ids_.size() == 0 || ids_.data()[ids_.size() - 1] != unknown) {
    ids_.append(unknown);  // one for a run of unknown characters
  }
}

// Appends a unit's ids; a run of unknown characters may go on from the unit before.
void Worker::append(const Id* ids, std::size_t count) {
  const bool follows = out_->size() > document_start_;
  if (follows && count > 0 && fuses_unknown_ && ids[0] == vocabulary_.unknown_id() &&
      out_->data()[out_->size() - 1] == ids[0]) {
    ++ids;
    --count;
  }
  out_->append(ids, count);
}

}  // namespace vikhr
