#include "bpe/extend_words.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

#include "base/hash.hpp"

namespace vikhr {
namespace {

constexpr std::size_t kMaxWords = std::size_t{1} << 30;  // slots are 32 bits wide
constexpr std::size_t kBytesOfWord = 64;  // max_words words of this length on average are kept

std::uint64_t hash_bytes(std::string_view text) {
  std::uint64_t hash = text.size();
  while (!text.empty()) {
    std::uint64_t part = 0;
    const std::size_t length = std::min<std::size_t>(text.size(), sizeof part);
    std::memcpy(&part, text.data(), length);
    hash = mix(hash ^ part ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u);
    text.remove_prefix(length);
  }
  return hash;
}

// At most `limit` bytes, never cut inside a character.
std::size_t whole_characters(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return text.size();
  std::size_t end = limit;
  while (limit - end < 4 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return limit - end < 4 ? end : limit;  // no character is longer
}

}  // namespace

WordCounts::WordCounts(std::size_t max_words) : max_words_(max_words) {
  if (max_words < 1 || max_words > kMaxWords) {
    throw std::invalid_argument("max_words must be from 1 to 2^30");
  }
  rehash(1024);
}

void WordCounts::add(std::string_view text) {
  while (!text.empty()) {
    const std::size_t end = text.find_first_of("\n\r\t");
    if (end != 0) add_line(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
}

void WordCounts::add_line(std::string_view line) {
  line_.assign(1, ' ');
  append_with_spaces(line, line_);
  const std::string_view rest = line_;
  for (std::size_t start = 0; start < rest.size();) {
    const std::size_t letters = rest.find_first_not_of(' ', start);
    const std::size_t end = std::min(rest.find(' ', letters), rest.size());
    add_word(rest.substr(start, end - start), 1);
    start = end;
  }
}

void WordCounts::add_word(std::string_view word, std::uint64_t count) {
  bytes_ += word.size() * count;
  while (!word.empty()) {
    const std::size_t length = whole_characters(word, kMaxWord);
    count_word(word.substr(0, length), count);
    word.remove_prefix(length);
  }
}

void WordCounts::add_scaled(const WordCounts& other, double factor) {
  for (const Entry& entry : other.entries_) {
    const double scaled = std::round(static_cast<double>(entry.count) * factor);
    count_word(other.text_of(entry), static_cast<std::uint64_t>(std::max(scaled, 1.0)));
  }
  bytes_ += other.bytes_;
  dropped_ += other.dropped_;
}

void WordCounts::count_word(std::string_view word, std::uint64_t count) {
  const std::uint64_t hash = hash_bytes(word);
  std::size_t slot = hash & (slots_.size() - 1);
  for (; slots_[slot] != 0; slot = (slot + 1) & (slots_.size() - 1)) {
    Entry& entry = entries_[slots_[slot] - 1];
    if (entry.hash == hash && text_of(entry) == word) {
      entry.count += count;
      return;
    }
  }
  entries_.push_back({hash, count, text_.size(), static_cast<std::uint32_t>(word.size())});
  text_.append(word);
  slots_[slot] = static_cast<std::uint32_t>(entries_.size());
  if (entries_.size() > max_words_ || text_.size() > max_words_ * kBytesOfWord + kMaxWord) {
    drop_rare();
  } else if (2 * entries_.size() > slots_.size()) {
    rehash(2 * slots_.size());
  }
}

void WordCounts::drop_rare() {
  std::vector<std::uint64_t> counts;
  counts.reserve(entries_.size());
  for (const Entry& entry : entries_) counts.push_back(entry.count);
  const auto middle = counts.begin() + static_cast<std::ptrdiff_t>(counts.size() / 2);
  std::nth_element(counts.begin(), middle, counts.end());
  const std::uint64_t rare = *middle;

  std::string text;
  std::vector<Entry> kept;
  for (Entry entry : entries_) {
    if (entry.count <= rare) {
      dropped_ += entry.count;
      continue;
    }
    const std::string_view word = text_of(entry);
    entry.start = text.size();
    text.append(word);
    kept.push_back(entry);
  }
  text_ = std::move(text);
  entries_ = std::move(kept);
  rehash(slots_.size());
}

void WordCounts::rehash(std::size_t slots) {
  slots_.assign(slots, 0);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    std::size_t slot = entries_[i].hash & (slots - 1);
    while (slots_[slot] != 0) slot = (slot + 1) & (slots - 1);
    slots_[slot] = static_cast<std::uint32_t>(i + 1);
  }
}

void WordCounts::sort() {
  std::sort(entries_.begin(), entries_.end(), [this](const Entry& a, const Entry& b) {
    return a.count != b.count ? a.count > b.count : text_of(a) < text_of(b);
  });
  rehash(slots_.size());
}

std::vector<std::pair<CodePoint, std::uint64_t>> WordCounts::characters() const {
  std::map<CodePoint, std::uint64_t> counts;
  for (const Entry& entry : entries_) {
    const std::string_view word = text_of(entry);
    for (std::size_t at = 0; at < word.size();) {
      const Character character = decode_character(word.substr(at));
      if (character.length > 0) counts[character.code_point] += entry.count;
      at += std::max(character.length, 1u);
    }
  }
  return {counts.begin(), counts.end()};
}

}  // namespace vikhr
