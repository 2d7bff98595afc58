#include "bpe/byte_extend.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

#include "text/utf8.hpp"

namespace vikhr {
namespace {

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// Whether bytes begin or end inside a character, and are no more than a part of it.
bool is_part_of_character(std::string_view bytes) {
  const auto is_trail = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; };
  const auto lead = static_cast<unsigned char>(bytes.front());
  const unsigned whole = lead < 0xC0 ? 4 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return lead >= 0x80 && bytes.size() < whole &&
         std::all_of(bytes.begin() + 1, bytes.end(), is_trail);
}

}  // namespace

ByteExtender::ByteExtender(std::vector<std::string> tokens,
                           const std::vector<std::pair<Token, Token>>& merges, PieceRules rules,
                           bool keeps_whole)
    : rules_(std::move(rules)), keeps_whole_(keeps_whole), tokens_(std::move(tokens)) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    token_of_.try_emplace(tokens_[i], static_cast<Token>(i));
  }
  const auto is_token = [this](Token token) {
    return token >= 0 && static_cast<std::size_t>(token) < tokens_.size();
  };
  for (const auto& [left, right] : merges) {
    if (!is_token(left) || !is_token(right)) throw std::invalid_argument("a merge of no token");
    const auto merged = token_of_.find(bytes_of(left) + bytes_of(right));
    if (merged == token_of_.end()) throw std::invalid_argument("a merge to no token");
    Pair& pair = pairs_[find_or_add(left, right)];
    pair.merged = merged->second;
    pair.rank = static_cast<std::uint32_t>(merges_.size());
    merges_.push_back(static_cast<std::uint32_t>(&pair - pairs_.data()));
  }
}

// Whole characters by the rules, or a part of one character; also behind a space.
bool ByteExtender::may_be_token(std::string_view bytes) const {
  const std::string_view rest = bytes.substr(bytes.front() == ' ' ? 1 : 0);
  if (rest.empty()) return false;
  if (is_part_of_character(rest)) return true;
  for (std::size_t at = 0; at < rest.size();) {
    const unsigned length = decode_character(rest.substr(at)).length;
    if (length == 0) return false;
    at += length;
  }
  return rules_.can_join(' ', decode_valid_character(rest.data()).code_point) &&
         rules_.may_be_piece(bytes);
}

std::uint32_t ByteExtender::find_or_add(Token left, Token right) {
  const std::uint64_t key = key_of(left, right);
  if (const std::uint32_t* known = pair_of_.find(key)) return *known;
  const auto index = static_cast<std::uint32_t>(pairs_.size());
  if (index == kUnranked) throw std::length_error("more than 2^32 different pairs of tokens");
  pair_of_.insert(key, index);
  Pair& added = pairs_.emplace_back();
  added.left = left;
  added.right = right;
  std::string bytes = bytes_of(left) + bytes_of(right);
  if (token_of_.count(bytes) == 0 && may_be_token(bytes)) added.bytes = std::move(bytes);
  return index;
}

std::uint32_t ByteExtender::rank_of(Token left, Token right) const {
  if (left == kNone || right == kNone) return kUnranked;
  const std::uint32_t* pair = pair_of_.find(key_of(left, right));
  return pair == nullptr ? kUnranked : pairs_[*pair].rank;
}

void ByteExtender::add_words(const WordCounts& words) {
  std::array<Token, 256> token_of_byte;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto found = token_of_.find(std::string(1, static_cast<char>(byte)));
    token_of_byte[byte] = found == token_of_.end() ? kNone : found->second;
  }
  std::vector<std::uint32_t> pairs;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string_view text = words.word(i);
    if (keeps_whole_ && token_of_.count(std::string(text)) != 0) continue;
    Word word{words.count(i), tokens_of_words_.size(), static_cast<std::uint32_t>(text.size())};
    for (const char byte : text) {
      tokens_of_words_.push_back(token_of_byte[static_cast<unsigned char>(byte)]);
    }
    settle(word);
    tokens_of_words_.resize(word.start + word.length);
    pairs.clear();
    list_pairs(word, 0, word.length, pairs);
    if (pairs.empty()) {
      tokens_of_words_.resize(word.start);
      continue;
    }
    const auto index = static_cast<std::uint32_t>(words_.size());
    for (const std::uint32_t number : pairs) {
      Pair& pair = pairs_[number];
      pair.count += word.count;
      if (pair.words.empty() || pair.words.back() != index) pair.words.push_back(index);
    }
    words_.push_back(word);
  }
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    if (pairs_[i].count > 1) push(static_cast<std::uint32_t>(i));
  }
}

// Merges pairs, always the one of lowest rank and the leftmost of equals, until none is left.
void ByteExtender::settle(Word& word) {
  Token* tokens = tokens_of_words_.data() + word.start;
  ranks_.clear();
  for (std::size_t i = 0; i + 1 < word.length; ++i) {
    ranks_.push_back(rank_of(tokens[i], tokens[i + 1]));
  }
  while (!ranks_.empty()) {
    const auto best = std::min_element(ranks_.begin(), ranks_.end());
    if (*best == kUnranked) return;
    const auto at = static_cast<std::size_t>(best - ranks_.begin());
    tokens[at] = pairs_[merges_[*best]].merged;
    std::copy(tokens + at + 2, tokens + word.length, tokens + at + 1);
    --word.length;
    ranks_.erase(best);
    if (at > 0) ranks_[at - 1] = rank_of(tokens[at - 1], tokens[at]);
    if (at < ranks_.size()) ranks_[at] = rank_of(tokens[at], tokens[at + 1]);
  }
}

// Adds the pairs that begin from `first` on and before `last` in a word, and may become tokens.
void ByteExtender::list_pairs(const Word& word, std::size_t first, std::size_t last,
                              std::vector<std::uint32_t>& pairs) {
  const Token* tokens = tokens_of_words_.data() + word.start;
  for (std::size_t i = first; i < last && i + 1 < word.length; ++i) {
    if (tokens[i] == kNone || tokens[i + 1] == kNone) continue;
    const std::uint32_t pair = find_or_add(tokens[i], tokens[i + 1]);
    if (!pairs_[pair].bytes.empty()) pairs.push_back(pair);
  }
}

// The pairs that hold one of the `width` tokens at `places_`, each once.
void ByteExtender::list_pairs_around(const Word& word, std::size_t width,
                                     std::vector<std::uint32_t>& pairs) {
  pairs.clear();
  std::size_t listed = 0;
  for (const std::size_t place : places_) {
    list_pairs(word, std::max(listed, place - std::min<std::size_t>(place, 1)), place + width,
               pairs);
    listed = place + width;
  }
}

// The heap's order: less frequent, then longer, then later by bytes.
bool ByteExtender::is_after(const Candidate& a, const Candidate& b) const {
  if (a.count != b.count) return a.count < b.count;
  const Pair& left = pairs_[a.pair];
  const Pair& right = pairs_[b.pair];
  if (left.bytes.size() != right.bytes.size()) return left.bytes.size() > right.bytes.size();
  return left.bytes > right.bytes;
}

void ByteExtender::push(std::uint32_t pair) {
  heap_.push_back({pairs_[pair].count, pair});
  std::push_heap(heap_.begin(), heap_.end(),
                 [this](const Candidate& a, const Candidate& b) { return is_after(a, b); });
}

std::vector<ByteExtender::Learnt> ByteExtender::learn(std::size_t count) {
  std::vector<Learnt> learnt;
  while (learnt.size() < count && !heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(),
                  [this](const Candidate& a, const Candidate& b) { return is_after(a, b); });
    const Candidate candidate = heap_.back();
    heap_.pop_back();
    Pair& pair = pairs_[candidate.pair];
    if (pair.merged != kNone) continue;
    if (pair.count != candidate.count) {  // it fell since it was put here; rises are put anew
      if (pair.count > 1 && pair.count < candidate.count) push(candidate.pair);
      continue;
    }
    pair.merged = static_cast<Token>(tokens_.size());
    pair.rank = static_cast<std::uint32_t>(merges_.size());
    merges_.push_back(candidate.pair);
    tokens_.push_back(pair.bytes);
    learnt.push_back({bytes_of(pair.left), bytes_of(pair.right), pair.count});
    const std::vector<std::uint32_t> words = std::move(pair.words);
    for (const std::uint32_t word : words) merge(candidate.pair, word);  // `pair` may move
    std::sort(risen_.begin(), risen_.end());
    risen_.erase(std::unique(risen_.begin(), risen_.end()), risen_.end());
    for (const std::uint32_t risen : risen_) {
      if (pairs_[risen].count > 1) push(risen);
    }
    risen_.clear();
  }
  return learnt;
}

// Merges the last pair learnt wherever it stands in a word, and moves the counts of the pairs
// around it along. Nothing else joins then: merges of the new token are yet to be learnt.
void ByteExtender::merge(std::uint32_t pair, std::uint32_t index) {
  Word& word = words_[index];
  Token* tokens = tokens_of_words_.data() + word.start;
  const Token left = pairs_[pair].left, right = pairs_[pair].right, merged = pairs_[pair].merged;
  places_.clear();
  for (std::uint32_t i = 0; i + 1 < word.length; ++i) {
    if (tokens[i] == left && tokens[i + 1] == right) places_.push_back(i++);
  }
  if (places_.empty()) return;
  list_pairs_around(word, 2, before_);
  Token* end = tokens + places_.front();
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Token* rest = tokens + places_[i] + 2;
    const Token* rest_end = tokens + (i + 1 < places_.size() ? places_[i + 1] : word.length);
    places_[i] = static_cast<std::uint32_t>(end - tokens);
    *end++ = merged;
    end = std::copy(rest, rest_end, end);
  }
  word.length = static_cast<std::uint32_t>(end - tokens);
  list_pairs_around(word, 1, after_);

  for (const std::uint32_t gone : before_) pairs_[gone].count -= word.count;
  std::sort(before_.begin(), before_.end());
  std::sort(after_.begin(), after_.end());
  for (auto place = after_.begin(); place != after_.end();) {
    const auto next = std::upper_bound(place, after_.end(), *place);
    const auto earlier = std::equal_range(before_.begin(), before_.end(), *place);
    Pair& found = pairs_[*place];
    found.count += word.count * static_cast<std::uint64_t>(next - place);
    if (earlier.first == earlier.second && (found.words.empty() || found.words.back() != index)) {
      found.words.push_back(index);
    }
    if (next - place > earlier.second - earlier.first) risen_.push_back(*place);
    place = next;
  }
}

}  // namespace vikhr
