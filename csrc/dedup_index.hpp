// Near-duplicates among texts that come in batches: candidates by LSH, each proved by its Jaccard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "band_table.hpp"
#include "minhash.hpp"
#include "set_storage.hpp"
#include "shingle_set.hpp"
#include "shingles.hpp"
#include "texts.hpp"

namespace vikhr {

enum class Clustering : std::uint32_t { star, transitive };

struct DedupSettings {
  ShingleKind shingle;
  MinHashSettings minhash;
  double threshold;  // of the Jaccard similarity, above 0 and at most 1
  Clustering clustering;
};

// std::invalid_argument where a value is out of its range.
void check(const DedupSettings& settings);

struct DedupCounts {
  std::uint64_t texts = 0;
  std::uint64_t kept = 0;
  std::uint64_t identical = 0;    // to an earlier text's set, found without LSH
  std::uint64_t short_texts = 0;  // shorter than a shingle
  std::uint64_t candidates = 0;   // pairs that share a band
  std::uint64_t bytes = 0;        // that the index takes
};

// Bytes that are no saved index.
class IndexError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What stands behind the bytes of a saved index. It finds damage, not malice: what is read is
// checked too.
std::uint64_t index_checksum(std::string_view bytes);

// Texts are numbered in the order in which they come. Two sets match when they share a band and
// their Jaccard similarity reaches the threshold; equal sets always match, and a text shorter than
// a shingle matches nothing else.
//   star: a text that matches an earlier kept one is removed, and belongs to the first such text.
//   transitive: the connected parts of the graph of matches; of each the first text is kept.
// What an added text does depends on the texts before it alone, never on threads or batches.
class DedupIndex {
 public:
  DedupIndex(const DedupSettings& settings, Isa isa);

  const DedupSettings& settings() const { return settings_; }

  // All texts or, on an exception, none.
  void add(const Texts& texts, InvalidUtf8 policy, unsigned threads);

  // For each text the number of the text that would be kept in its place if it were added next,
  // -1 where it would be kept itself. Changes nothing. Under `star` only.
  std::vector<std::int64_t> match(const Texts& texts, InvalidUtf8 policy, unsigned threads) const;

  // For each text the number of the one kept in its place, its own where it is kept.
  std::vector<std::int64_t> clusters() const;
  DedupCounts counts() const;

  // Hands the saved index to write(bytes) piece by piece.
  void save(const std::function<void(std::string_view)>& write) const;
  // IndexError unless `bytes` are what `save` wrote.
  static std::unique_ptr<DedupIndex> load(std::string_view bytes, Isa isa);

 private:
  struct Prepared;
  class Preparer;
  struct Entry {  // a text that others are compared with
    ShingleSet set;
    std::uint32_t text;
    bool is_short;
  };

  static std::uint32_t key_of(const ShingleSet& set);
  void keep_sets(std::size_t old_entries, std::list<SetStorage>& storages);
  // `keys` are always those of the whole set and of its bands.
  void resolve(const Prepared& block);
  std::uint32_t representative(const ShingleSet& set, const std::uint32_t* keys);
  void find_candidates(const std::uint32_t* keys);
  std::int64_t first_match(const ShingleSet& set, bool is_short, const std::uint32_t* keys,
                           std::vector<std::uint32_t>& candidates) const;
  const Entry* find_identical(const ShingleSet& set, std::uint32_t key) const;
  // After `find_candidates`, unless the text is short.
  void insert(const ShingleSet& set, bool is_short, std::uint32_t text, const std::uint32_t* keys);
  void prefetch(const std::uint32_t* keys) const;
  std::uint32_t root(std::uint32_t text);

  DedupSettings settings_;
  MinHash minhash_;
  Isa isa_;
  mutable std::mutex mutex_;
  std::vector<std::uint32_t> parents_;  // of the texts; a text that is kept is its own
  std::vector<Entry> entries_;
  std::vector<BandTable> bands_;  // by the bands' keys
  BandTable identical_;           // by the whole set
  SetStorage storage_;
  DedupCounts counts_;
  // What `find_candidates` leaves: the entries, and where each band has room for the text.
  std::vector<std::uint32_t> candidates_;
  std::vector<std::size_t> places_;
  std::vector<std::uint32_t> seen_;  // by each entry: the text that it was a candidate of last


};

}  // namespace vikhr
