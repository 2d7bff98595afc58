#include "dedup_index.hpp"

#include <algorithm>
#include <string>

#include "hash.hpp"
#include "threads.hpp"

namespace vikhr {
namespace {

// The tables are much larger than the caches: what the next texts need is asked for so far ahead.
constexpr std::size_t kAhead = 4;

}  // namespace

void check(const DedupSettings& settings) {
  check(settings.shingle);
  if (!(settings.threshold > 0 && settings.threshold <= 1)) {
    throw std::invalid_argument("threshold is " + std::to_string(settings.threshold) +
                                "; it must be above 0 and at most 1");
  }
}

// Values spread evenly, so that the sum tells sets apart; equal keys are looked at closely anyway.
std::uint32_t DedupIndex::key_of(const ShingleSet& set) {
  std::uint64_t sum = set.size;
  for (std::size_t i = 0; i < set.size; ++i) sum += set.values[i];
  return static_cast<std::uint32_t>(hash_word(sum) >> 32);
}

// A block of texts as sets and their keys.
struct DedupIndex::Prepared {
  std::vector<ShingleSet> sets;
  std::vector<std::uint32_t> keys;  // [texts, 1 + bands]: of the whole set, of its bands
  std::vector<bool> is_short;
};

class DedupIndex::Preparer {
 public:
  Preparer(const DedupIndex& index, SetStorage& storage)
      : minhash_(index.minhash_),
        shingler_(index.settings_.shingle, index.isa_),
        signature_(minhash_.padded()),
        storage_(storage) {}

  void append(const Text& text, std::size_t document, InvalidUtf8 policy, Prepared& out) {
    shingles_.clear();
    out.is_short.push_back(shingler_.append(text, document, policy, shingles_));
    sets_.make_set(shingles_, 0);
    const ShingleSet set = storage_.store({shingles_.data(), shingles_.size()});
    out.sets.push_back(set);
    out.keys.push_back(key_of(set));
    minhash_.sign(set.values, set.size, signature_.data());
    out.keys.resize(out.keys.size() + minhash_.settings().bands);
    minhash_.band_keys(signature_.data(), out.keys.data() + out.keys.size() - minhash_.settings().bands);
  }

 private:
  const MinHash& minhash_;
  Shingler shingler_;
  SetMaker sets_;
  std::vector<std::uint32_t> signature_;
  std::vector<std::uint64_t> shingles_;
  SetStorage& storage_;
};

DedupIndex::DedupIndex(const DedupSettings& settings, Isa isa)
    : settings_((check(settings), settings)),
      minhash_(settings.minhash, isa),
      isa_(isa),
      bands_(settings.minhash.bands),
      places_(settings.minhash.bands) {}

void DedupIndex::add(const Texts& texts, InvalidUtf8 policy, unsigned threads) {
  const std::vector<std::size_t> starts = cut_in_blocks(texts, kShingledTogether);
  const std::size_t blocks = starts.size() - 1;
  std::vector<Prepared> prepared(blocks);
  std::mutex storages_mutex;
  std::list<SetStorage> storages;  // one a thread
  run_blocks(blocks, resolve_threads(threads), [&]() {
    const std::lock_guard<std::mutex> lock(storages_mutex);
    storages.emplace_back();
    return [&, preparer = Preparer(*this, storages.back())](std::size_t block) mutable {
      const std::size_t count = starts[block + 1] - starts[block];
      prepared[block].sets.reserve(count);
      prepared[block].keys.reserve(count * (1 + settings_.minhash.bands));
      for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
        preparer.append(texts[i], i, policy, prepared[block]);
      }
    };
  });
  const std::lock_guard<std::mutex> lock(mutex_);
  if (texts.size() >= BandTable::kNone - parents_.size()) {
    throw std::length_error("more than 2^32 - 2 texts in one index; use several");
  }
  const std::size_t old_entries = entries_.size();
  for (Prepared& block : prepared) {
    resolve(block);
    block = Prepared();
  }
  keep_sets(old_entries, storages);
}

// The new entries' sets still lie in `storages`, among those of removed texts.
void DedupIndex::keep_sets(std::size_t old_entries, std::list<SetStorage>& storages) {
  std::size_t needed = 0, stored = 0;
  for (std::size_t i = old_entries; i < entries_.size(); ++i) {
    needed += entries_[i].set.size * sizeof(std::uint64_t);
  }
  for (const SetStorage& storage : storages) stored += storage.bytes();
  if (stored - needed <= stored / 4) {
    for (SetStorage& storage : storages) storage_.take(std::move(storage));
  } else {
    for (std::size_t i = old_entries; i < entries_.size(); ++i) {
      entries_[i].set = storage_.store(entries_[i].set);
    }
  }
}

std::vector<std::int64_t> DedupIndex::match(const Texts& texts, InvalidUtf8 policy,
                                            unsigned threads) const {
  if (settings_.clustering != Clustering::star) {
    throw std::invalid_argument("only star clustering decides about a text without adding it");
  }
  const std::vector<std::size_t> starts = cut_in_blocks(texts, kShingledTogether);
  std::vector<std::int64_t> found(texts.size());
  const std::size_t row = 1 + settings_.minhash.bands;
  const std::lock_guard<std::mutex> lock(mutex_);
  run_blocks(starts.size() - 1, resolve_threads(threads), [&]() {
    return [&, candidates = std::vector<std::uint32_t>()](std::size_t block) mutable {
      SetStorage storage;
      Preparer preparer(*this, storage);
      Prepared prepared;
      for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
        preparer.append(texts[i], i, policy, prepared);
      }
      const std::size_t count = prepared.sets.size();
      for (std::size_t i = 0; i < count; ++i) {
        if (i + kAhead < count) prefetch(&prepared.keys[(i + kAhead) * row]);
        found[starts[block] + i] = first_match(prepared.sets[i], prepared.is_short[i],
                                               &prepared.keys[i * row], candidates);
      }
    };
  });
  return found;
}

std::int64_t DedupIndex::first_match(const ShingleSet& set, bool is_short,
                                     const std::uint32_t* keys,
                                     std::vector<std::uint32_t>& candidates) const {
  if (const Entry* twin = find_identical(set, keys[0])) return twin->text;
  if (is_short) return -1;
  candidates.clear();
  for (std::size_t band = 0; band < bands_.size(); ++band) {
    bands_[band].find(keys[1 + band],
                      [&](std::uint32_t entry) { candidates.push_back(entry); });
  }
  // Entries are in the order of their texts, so that the first that is similar is the wanted one.
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
  for (const std::uint32_t candidate : candidates) {
    const Entry& entry = entries_[candidate];
    if (is_similar(set, entry.set, settings_.threshold)) return entry.text;
  }
  return -1;
}

void DedupIndex::resolve(const Prepared& block) {
  const std::size_t row = 1 + settings_.minhash.bands;
  const std::size_t count = block.sets.size();
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch(&block.keys[(i + kAhead) * row]);
    const ShingleSet& set = block.sets[i];
    const std::uint32_t* keys = &block.keys[i * row];
    const auto text = static_cast<std::uint32_t>(parents_.size());
    parents_.push_back(text);
    counts_.short_texts += block.is_short[i];
    if (const Entry* twin = find_identical(set, keys[0])) {
      parents_[text] = root(twin->text);
      ++counts_.identical;
      continue;
    }
    if (!block.is_short[i]) parents_[text] = representative(set, keys);
    const bool is_kept = parents_[text] == text;
    if (is_kept || settings_.clustering == Clustering::transitive) {
      insert(set, block.is_short[i], text, keys);
    }
  }
}

// The text's own number where nothing before it matches.
std::uint32_t DedupIndex::representative(const ShingleSet& set, const std::uint32_t* keys) {
  const auto text = static_cast<std::uint32_t>(parents_.size() - 1);
  find_candidates(keys);
  std::uint32_t first = text;
  for (const std::uint32_t candidate : candidates_) {
    const Entry& entry = entries_[candidate];
    const std::uint32_t found = root(entry.text);
    const bool is_star = settings_.clustering == Clustering::star;
    // Nothing new could come of it.
    if (is_star ? found > first : found == root(text)) continue;
    if (!is_similar(set, entry.set, settings_.threshold)) continue;
    first = std::min(first, found);
    // The smaller number is the root, so that the first text of a cluster is kept.
    if (!is_star) {
      const std::uint32_t own = root(text);
      parents_[std::max(own, found)] = std::min(own, found);
    }
  }
  return first;
}

void DedupIndex::find_candidates(const std::uint32_t* keys) {
  const auto text = static_cast<std::uint32_t>(parents_.size() - 1);
  candidates_.clear();
  for (std::size_t band = 0; band < bands_.size(); ++band) {
    bands_[band].reserve();
    places_[band] = bands_[band].find(keys[1 + band], [&](std::uint32_t entry) {
      if (seen_[entry] == text) return;
      seen_[entry] = text;
      candidates_.push_back(entry);
    });
  }
  counts_.candidates += candidates_.size();
}

const DedupIndex::Entry* DedupIndex::find_identical(const ShingleSet& set,
                                                    std::uint32_t key) const {
  const Entry* found = nullptr;
  identical_.find(key, [&](std::uint32_t entry) {
    if (found == nullptr && entries_[entry].set == set) found = &entries_[entry];
  });
  return found;
}

void DedupIndex::insert(const ShingleSet& set, bool is_short, std::uint32_t text,
                        const std::uint32_t* keys) {
  const auto entry = static_cast<std::uint32_t>(entries_.size());
  entries_.push_back({set, text, is_short});
  seen_.push_back(text);
  identical_.reserve();
  identical_.insert(identical_.find(keys[0], [](std::uint32_t) {}), keys[0], entry);
  if (is_short) return;
  for (std::size_t band = 0; band < bands_.size(); ++band) {
    bands_[band].insert(places_[band], keys[1 + band], entry);
  }
}

void DedupIndex::prefetch(const std::uint32_t* keys) const {
  identical_.prefetch(keys[0]);
  for (std::size_t band = 0; band < bands_.size(); ++band) bands_[band].prefetch(keys[1 + band]);
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
  counts.bytes = storage_.bytes() + entries_.capacity() * sizeof(Entry) + identical_.bytes() +
                 (parents_.capacity() + seen_.capacity()) * sizeof(std::uint32_t);
  for (const BandTable& band : bands_) counts.bytes += band.bytes();
  return counts;
}

}  // namespace vikhr
