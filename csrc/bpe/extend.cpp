#include "bpe/extend.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace vikhr {
namespace {

std::uint64_t key_of(std::uint32_t left, std::uint32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | right;
}

}  // namespace

Extender::Extender(const std::vector<ScoredPiece>& base, CharacterClasses classes,
                   std::size_t max_characters, double first_score)
    : rules_(std::move(classes), max_characters), first_score_(first_score) {
  for (const ScoredPiece& piece : base) {
    Text& text = texts_[static_cast<std::size_t>(find_or_add(piece.text))];
    text.is_piece = true;
    text.score = piece.score;
    CodePoint before = 0;
    for (std::size_t at = 0; at < piece.text.size();) {
      const Character character = decode_valid_character(piece.text.data() + at);
      if (at > 0) base_neighbours_.insert(key_of(before, character.code_point));
      before = character.code_point;
      at += character.length;
    }
  }
}

Extender::Symbol Extender::find_or_add(std::string_view text) {
  const auto [place, is_new] = symbols_of_.try_emplace(std::string(text), 0);
  if (!is_new) return place->second;
  if (texts_.size() >= static_cast<std::size_t>(std::numeric_limits<Symbol>::max())) {
    throw std::length_error("more than 2^31 different pairs of pieces");
  }
  place->second = static_cast<Symbol>(texts_.size());
  Text& added = texts_.emplace_back();
  added.text = text;
  added.may_be_piece = rules_.may_be_piece(text);
  for (const char byte : text) added.characters += (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
  return place->second;
}

// kNone where one of them is no piece.
Extender::Symbol Extender::spelt_by(Symbol left, Symbol right) {
  if (left == kNone || right == kNone) return kNone;
  const std::uint64_t key =
      key_of(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right));
  if (const Symbol* known = spelt_.find(key)) return *known;
  const Symbol spelt = find_or_add(texts_[static_cast<std::size_t>(left)].text +
                                   texts_[static_cast<std::size_t>(right)].text);
  spelt_.insert(key, spelt);
  return spelt;
}

// Words are cut where neither a base piece nor a new one can cross: fewer different parts remain.
void Extender::add_words(const WordCounts& words) {
  std::unordered_map<std::string, std::uint64_t> counts;
  const auto add_part = [&](std::string_view part, std::uint64_t count) {
    if (decode_valid_character(part.data()).length < part.size()) counts[std::string(part)] += count;
  };
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words.word(i);
    std::size_t start = 0;
    CodePoint before = 0;
    for (std::size_t at = 0; at < word.size();) {
      const Character character = decode_valid_character(word.data() + at);
      if (at > 0 && !rules_.can_join(before, character.code_point) &&
          base_neighbours_.count(key_of(before, character.code_point)) == 0) {
        add_part(word.substr(start, at - start), words.count(i));
        start = at;
      }
      before = character.code_point;
      at += character.length;
    }
    add_part(word.substr(start), words.count(i));
  }
  Parts parts(counts.begin(), counts.end());
  counts = {};
  std::sort(parts.begin(), parts.end());  // a hash map's order is its library's own
  segment_words(parts);
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    if (texts_[i].count > 1) push(static_cast<Symbol>(i));
  }
}

void Extender::segment_words(const Parts& parts) {
  if (parts.size() > std::numeric_limits<std::uint32_t>::max()) {
    throw std::length_error("more than 2^32 different words");
  }
  words_.reserve(parts.size());
  std::vector<Symbol> spelt;
  for (const auto& [part, count] : parts) {
    Word word{count, symbols_.size(), 0};
    for (std::size_t at = 0; at < part.size(); ++word.length) {
      const unsigned length = decode_valid_character(part.data() + at).length;
      const auto found = symbols_of_.find(part.substr(at, length));
      const bool is_piece =
          found != symbols_of_.end() && texts_[static_cast<std::size_t>(found->second)].is_piece;
      symbols_.push_back(is_piece ? found->second : kNone);
      at += length;
    }
    settle(word);
    symbols_.resize(word.start + word.length);
    if (word.length < 2) continue;
    list_neighbours(word, spelt);
    for (const Symbol symbol : spelt) {
      Text& text = texts_[static_cast<std::size_t>(symbol)];
      text.count += count;
      const auto index = static_cast<std::uint32_t>(words_.size());
      if (text.words.empty() || text.words.back() != index) text.words.push_back(index);
    }
    words_.push_back(word);
  }
}

// Joins neighbours that spell a piece, the highest score first, until none do.
void Extender::settle(Word& word) {
  Symbol* symbols = symbols_.data() + word.start;
  for (;;) {
    std::size_t best = 0;
    Symbol joined = kNone;
    for (std::size_t i = 0; i + 1 < word.length; ++i) {
      const Symbol spelt = spelt_by(symbols[i], symbols[i + 1]);
      if (spelt == kNone || !texts_[static_cast<std::size_t>(spelt)].is_piece) continue;
      if (joined == kNone || texts_[static_cast<std::size_t>(spelt)].score >
                                 texts_[static_cast<std::size_t>(joined)].score) {
        best = i;
        joined = spelt;
      }
    }
    if (joined == kNone) return;
    symbols[best] = joined;
    std::copy(symbols + best + 2, symbols + word.length, symbols + best + 1);
    --word.length;
  }
}

// The texts that the word's neighbours spell and that may become pieces, from left to right.
void Extender::list_neighbours(const Word& word, std::vector<Symbol>& spelt) {
  spelt.clear();
  for (std::size_t i = word.start; i + 1 < word.start + word.length; ++i) {
    const Symbol symbol = spelt_by(symbols_[i], symbols_[i + 1]);
    if (symbol != kNone && texts_[static_cast<std::size_t>(symbol)].may_be_piece) {
      spelt.push_back(symbol);
    }
  }
}

// The heap's order: less frequent, then longer, then later in the alphabet.
bool Extender::is_after(const Candidate& a, const Candidate& b) const {
  if (a.count != b.count) return a.count < b.count;
  const Text& left = texts_[static_cast<std::size_t>(a.text)];
  const Text& right = texts_[static_cast<std::size_t>(b.text)];
  if (left.characters != right.characters) return left.characters > right.characters;
  return left.text > right.text;
}

void Extender::push(Symbol text) {
  heap_.push_back({texts_[static_cast<std::size_t>(text)].count, text});
  std::push_heap(heap_.begin(), heap_.end(),
                 [this](const Candidate& a, const Candidate& b) { return is_after(a, b); });
}

std::vector<Extender::Learnt> Extender::learn(std::size_t count) {
  std::vector<Learnt> learnt;
  while (learnt.size() < count && !heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(),
                  [this](const Candidate& a, const Candidate& b) { return is_after(a, b); });
    const Candidate candidate = heap_.back();
    heap_.pop_back();
    Text& text = texts_[static_cast<std::size_t>(candidate.text)];
    if (text.is_piece) continue;
    if (text.count != candidate.count) {  // it fell since it was put here; rises are put anew
      if (text.count > 1 && text.count < candidate.count) push(candidate.text);
      continue;
    }
    text.is_piece = true;
    text.score = first_score_ - static_cast<double>(learnt_++);
    learnt.push_back({text.text, text.count});
    const std::vector<std::uint32_t> words = std::move(text.words);
    for (const std::uint32_t word : words) learn_from(word);  // `text` may move
    std::sort(risen_.begin(), risen_.end());
    risen_.erase(std::unique(risen_.begin(), risen_.end()), risen_.end());
    for (const Symbol risen : risen_) {
      if (texts_[static_cast<std::size_t>(risen)].count > 1) push(risen);
    }
    risen_.clear();
  }
  return learnt;
}

// Segments a word anew, now that there is one more piece, and moves its counts along.
void Extender::learn_from(std::uint32_t index) {
  Word& word = words_[index];
  list_neighbours(word, before_);
  const std::uint32_t length = word.length;
  settle(word);
  if (word.length == length) return;
  list_neighbours(word, after_);
  for (const Symbol symbol : before_) texts_[static_cast<std::size_t>(symbol)].count -= word.count;
  for (const Symbol symbol : after_) {
    Text& text = texts_[static_cast<std::size_t>(symbol)];
    text.count += word.count;
    const auto earlier = std::count(before_.begin(), before_.end(), symbol);
    if (earlier == 0 && (text.words.empty() || text.words.back() != index)) {
      text.words.push_back(index);
    }
    if (std::count(after_.begin(), after_.end(), symbol) > earlier) risen_.push_back(symbol);
  }
}

}  // namespace vikhr
