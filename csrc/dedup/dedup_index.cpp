#include "dedup/dedup_index.hpp"

#include <algorithm>
#include <string>

#include "base/threads.hpp"

namespace vikhr {
namespace {

constexpr std::size_t kAhead = 4;  // texts, for what tables that fit no cache need

}  // namespace

void check(const DedupSettings& settings) {
  check(settings.shingle);
  if (!(settings.threshold > 0 && settings.threshold <= 1)) {
    throw std::invalid_argument("threshold is " + std::to_string(settings.threshold) +
                                "; it must be above 0 and at most 1");
  }
}

DedupIndex::DedupIndex(const DedupSettings& settings, Isa isa)
    : settings_((check(settings), settings)),
      minhash_(settings.minhash, isa),
      isa_(isa),
      tables_(1 + settings.minhash.bands) {}

void DedupIndex::complete_entries(unsigned threads) {
  if (waiting_ == 0) return;
  make_sets_of_waiting(threads);
  const std::size_t first = entries_.size() - waiting_;
  std::vector<std::uint8_t> is_short(waiting_);
  for (std::size_t i = 0; i < waiting_; ++i) is_short[i] = entries_[first + i].is_short;
  for_each_table(tables_.size(), waiting_, threads, [&](BandJoiner& joiner, std::size_t table) {
    const std::uint32_t* const keys = waiting_keys_.data() + table * waiting_;
    joiner.take(keys, table == 0 ? nullptr : is_short.data(), waiting_);
    joiner.insert(static_cast<std::uint32_t>(first), tables_[table]);
  });
  waiting_keys_ = {};
  waiting_ = 0;
}

void DedupIndex::make_sets_of_waiting(unsigned threads) {
  Entry* const first = entries_.data() + entries_.size() - waiting_;
  make_sets(waiting_, useful_threads(waiting_, threads),
            [&](std::size_t i) { return &first[i].shingles; });
}

std::vector<std::int64_t> DedupIndex::match(const Texts& texts, InvalidUtf8 policy,
                                            unsigned threads) {
  if (settings_.clustering != Clustering::star) {
    throw std::invalid_argument("only star clustering decides about a text without adding it");
  }
  const std::vector<std::size_t> starts = cut_in_blocks(texts, kShingledTogether);
  std::vector<std::int64_t> found(texts.size());
  const std::lock_guard<std::mutex> lock(mutex_);
  complete_entries(threads);
  run_blocks(starts.size() - 1, resolve_threads(threads), [&]() {
    return [&, candidates = std::vector<std::uint32_t>()](std::size_t block) mutable {
      const std::size_t start = starts[block], count = starts[block + 1] - start;
      SetStorage storage;
      Preparer preparer(settings_.shingle, minhash_, isa_);
      PreparedTexts prepared(count, settings_.minhash.bands);
      for (std::size_t i = 0; i < count; ++i) {
        preparer.prepare(texts[start + i], start + i, policy, storage, prepared, i);
      }
      make_sets(count, 1, [&](std::size_t i) { return &prepared.shingles[i]; });
      for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t band = 0; band < tables_.size() && i + kAhead < count; ++band) {
          tables_[band].prefetch(prepared.column(band)[i + kAhead]);
        }
        found[start + i] = first_match(prepared, i, candidates);
      }
    };
  });
  return found;
}

std::int64_t DedupIndex::first_match(const PreparedTexts& texts, std::size_t i,
                                     std::vector<std::uint32_t>& candidates) const {
  const ShingleSet set = texts.shingles[i].set();
  std::int64_t match = -1;
  tables_[0].find(texts.column(0)[i], [&](std::uint32_t entry) {
    if (entries_[entry].shingles.set() == set) match = entries_[entry].text;
    return match < 0;
  });
  if (match >= 0 || texts.is_short[i] != 0) return match;
  candidates.clear();
  for (std::size_t band = 1; band < tables_.size(); ++band) {
    tables_[band].find(texts.column(band)[i], [&](std::uint32_t entry) {
      candidates.push_back(entry);
      return true;
    });
  }
  // Entries are in the order of their texts, so that the first that is similar is the wanted one.
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
  for (const std::uint32_t candidate : candidates) {
    const Entry& entry = entries_[candidate];
    if (is_similar(set, entry.shingles.set(), settings_.threshold)) return entry.text;
  }
  return -1;
}

std::uint32_t DedupIndex::root(std::uint32_t text) {
  while (parents_[text] != text) {
    parents_[text] = parents_[parents_[text]];  // halves the way for the next time
    text = parents_[text];
  }
  return text;
}

std::vector<std::int64_t> DedupIndex::clusters() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::int64_t> clusters(parents_.size());
  // A parent comes before its children.
  for (std::size_t i = 0; i < parents_.size(); ++i) {
    clusters[i] = parents_[i] == i ? static_cast<std::int64_t>(i) : clusters[parents_[i]];
  }
  return clusters;
}

DedupCounts DedupIndex::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  DedupCounts counts = counts_;
  counts.texts = parents_.size();
  for (std::size_t i = 0; i < parents_.size(); ++i) counts.kept += parents_[i] == i;
  const std::size_t numbers = parents_.capacity() + seen_.capacity() + waiting_keys_.capacity();
  counts.bytes = storage_.bytes() + entries_.capacity() * sizeof(Entry) +
                 numbers * sizeof(std::uint32_t);
  for (const BandTable& table : tables_) counts.bytes += table.bytes();
  return counts;
}

}  // namespace vikhr
