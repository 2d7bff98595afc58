// How often each word occurs in a corpus of any size, in bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/utf8.hpp"

namespace vikhr {

// A word is a run of spaces and what follows up to the next space: as SentencePiece cuts text, and
// with every line begun by a space of its own, as its dummy prefix. Line ends and tabs end a word
// and belong to none.
class WordCounts {
 public:
  static constexpr std::size_t kMaxWord = 512;  // bytes; longer words are cut

  // At most `max_words` different words are kept: past it the rarer half is dropped.
  explicit WordCounts(std::size_t max_words);

  // `text` is valid UTF-8.
  void add(std::string_view text);

  // Adds a word as it is, of any bytes, that occurs `count` times.
  void add_word(std::string_view word, std::uint64_t count);

  // Adds the counts of `other` times `factor`, rounded, at least 1 each.
  void add_scaled(const WordCounts& other, double factor);

  // Sorts by count, most frequent first, then by bytes: an order that forgets that of the corpus.
  void sort();

  std::size_t size() const { return entries_.size(); }
  std::string_view word(std::size_t i) const { return text_of(entries_[i]); }
  std::uint64_t count(std::size_t i) const { return entries_[i].count; }
  std::uint64_t bytes() const { return bytes_; }      // of words, in all the text added
  std::uint64_t dropped() const { return dropped_; }  // occurrences of words that were dropped

  // Every character of the words and how often it occurs, in the order of code points.
  std::vector<std::pair<CodePoint, std::uint64_t>> characters() const;

 private:
  struct Entry {
    std::uint64_t hash;
    std::uint64_t count;
    std::size_t start;  // in `text_`
    std::uint32_t length;
  };

  std::string_view text_of(const Entry& entry) const {
    return std::string_view(text_).substr(entry.start, entry.length);
  }
  void add_line(std::string_view line);
  void count_word(std::string_view word, std::uint64_t count);
  void drop_rare();
  void rehash(std::size_t slots);

  std::size_t max_words_;
  std::string text_;  // of all words
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_;  // entry + 1, open addressing, at most half full
  std::string line_;
  std::uint64_t bytes_ = 0;
  std::uint64_t dropped_ = 0;
};

}  // namespace vikhr
