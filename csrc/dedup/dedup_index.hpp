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

#include "dedup/band_joiner.hpp"
#include "dedup/band_table.hpp"
#include "base/huge_memory.hpp"
#include "dedup/minhash.hpp"
#include "dedup/prepared_texts.hpp"
#include "dedup/set_storage.hpp"
#include "dedup/shingles.hpp"
#include "text/texts.hpp"

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

  // All texts or, on an exception, none; but after a std::bad_alloc the index is of no more use.
  void add(const Texts& texts, InvalidUtf8 policy, unsigned threads);

  // For each text the number of the text that would be kept in its place if it were added next,
  // -1 where it would be kept itself. Changes nothing. Under `star` only.
  std::vector<std::int64_t> match(const Texts& texts, InvalidUtf8 policy, unsigned threads);

  // For each text the number of the one kept in its place, its own where it is kept.
  std::vector<std::int64_t> clusters() const;
  DedupCounts counts() const;

  // Hands the saved index to write(bytes) piece by piece.
  void save(const std::function<void(std::string_view)>& write);
  // IndexError unless `bytes` are what `save` wrote.
  static std::unique_ptr<DedupIndex> load(std::string_view bytes, Isa isa);

 private:
  struct Entry {  // a text that others are compared with
    StoredShingles shingles;
    std::uint32_t text;
    bool is_short;
  };
  struct Batch;

  void prepare(const Texts& texts, InvalidUtf8 policy, unsigned threads,
               std::list<SetStorage>& storages, PreparedTexts& prepared) const;
  void link(Batch& batch, unsigned threads) const;
  void complete_entries(unsigned threads);
  void make_sets_of_waiting(unsigned threads);

  void resolve(Batch& batch);
  std::uint32_t representative(Batch& batch, std::size_t i);
  void find_candidates(Batch& batch, std::size_t i);
  std::uint32_t find_identical(Batch& batch, std::size_t i);
  template <typename Visit>
  void visit_bucket(Batch& batch, std::size_t table, std::size_t i, const Visit& visit);
  void keep_shingles(std::size_t old_entries, std::list<SetStorage>& storages);
  void keep_keys(std::size_t old_entries, Batch& batch);

  std::int64_t first_match(const PreparedTexts& texts, std::size_t i,
                           std::vector<std::uint32_t>& candidates) const;
  std::uint32_t root(std::uint32_t text);

  DedupSettings settings_;
  MinHash minhash_;
  Isa isa_;
  mutable std::mutex mutex_;
  std::vector<std::uint32_t> parents_;  // of the texts; a text that is kept is its own
  std::vector<Entry> entries_;
  SetStorage storage_;
  DedupCounts counts_;
  std::vector<BandTable> tables_;  // of the entries by their keys: of whole sets, then of each band
  // The last entries are not in the tables and may be no sets yet: where a batch stays the only
  // one, nobody asks for that.
  std::size_t waiting_ = 0;
  HugeVector<std::uint32_t> waiting_keys_;  // [tables, waiting entries]
  // What `find_candidates` leaves.
  std::vector<std::uint32_t> candidates_;
  std::vector<std::uint32_t> seen_;  // by each entry: the text that it was a candidate of last
};

}  // namespace vikhr
