// How texts come into a DedupIndex.
#include <algorithm>
#include <utility>

#include "dedup/dedup_index.hpp"
#include "base/threads.hpp"

namespace vikhr {
namespace {

void refuse_too_many(std::size_t texts) {
  if (texts >= BandJoiner::kInTable) {
    throw std::length_error("2^32 - 2 texts or more in one index; use several");
  }
}

}  // namespace

// Texts that are being added.
struct DedupIndex::Batch {
  explicit Batch(PreparedTexts given)
      : texts(std::move(given)),
        previous(texts.keys.size()),
        entries(texts.size()),
        shares_key(texts.size()),
        is_compared(texts.size()) {}

  PreparedTexts texts;
  // [tables, texts] Going from a text to the one before it with its key, and so on, one meets all
  // earlier texts with that key. What is no entry is cut out when it is met.
  HugeVector<std::uint32_t> previous;
  HugeVector<std::uint32_t> entries;      // what each text so far became; kNone for none
  std::vector<std::uint8_t> shares_key;   // with anything before it; most texts don't
  std::vector<std::uint8_t> is_compared;  // whether it shares one with anything at all

  // Sets the last two from `previous`.
  void mark();
};

void DedupIndex::Batch::mark() {
  constexpr std::size_t kTogether = 1 << 10;  // whose part of each column stays in a near cache
  const std::size_t count = texts.size();
  for (std::size_t start = 0; start < count; start += kTogether) {
    const std::size_t end = std::min(start + kTogether, count);
    for (std::size_t column = 0; column < previous.size(); column += count) {
      for (std::size_t i = start; i < end; ++i) {
        shares_key[i] |= previous[column + i] != BandJoiner::kNone;
      }
    }
    for (std::size_t i = start; i < end; ++i) {
      if (shares_key[i] == 0) continue;
      is_compared[i] = 1;
      for (std::size_t at = i; at < previous.size(); at += count) {
        if (previous[at] < BandJoiner::kInTable) is_compared[previous[at]] = 1;
      }
    }
  }
}

void DedupIndex::add(const Texts& texts, InvalidUtf8 policy, unsigned threads) {
  refuse_too_many(texts.size());
  std::list<SetStorage> storages;
  PreparedTexts prepared(texts.size(), settings_.minhash.bands);
  prepare(texts, policy, threads, storages, prepared);
  Batch batch(std::move(prepared));
  const std::lock_guard<std::mutex> lock(mutex_);
  refuse_too_many(parents_.size() + texts.size());
  complete_entries(threads);
  link(batch, threads);
  const std::size_t old_entries = entries_.size();
  resolve(batch);
  keep_shingles(old_entries, storages);
  keep_keys(old_entries, batch);
}

// Every thread's shingles lie in a storage of their own.
void DedupIndex::prepare(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                         std::list<SetStorage>& storages, PreparedTexts& prepared) const {
  const std::vector<std::size_t> starts = cut_in_blocks(texts, kShingledTogether);
  std::mutex storages_mutex;
  run_blocks(starts.size() - 1, resolve_threads(threads), [&]() {
    const std::lock_guard<std::mutex> lock(storages_mutex);
    return [&, &storage = storages.emplace_back(),
            preparer = Preparer(settings_.shingle, minhash_, isa_)](std::size_t block) mutable {
      for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
        preparer.prepare(texts[i], i, policy, storage, prepared, i);
      }
    };
  });
}

void DedupIndex::link(Batch& batch, unsigned threads) const {
  const std::size_t count = batch.texts.size();
  for_each_table(tables_.size(), count, threads, [&](BandJoiner& joiner, std::size_t table) {
    const std::uint8_t* const is_short = batch.texts.is_short.data();
    joiner.take(batch.texts.column(table), table == 0 ? nullptr : is_short, count);
    joiner.link(tables_[table], batch.previous.data() + table * count);
  });
  batch.mark();
  make_sets(count, useful_threads(count, threads), [&](std::size_t i) {
    return batch.is_compared[i] != 0 ? &batch.texts.shingles[i] : nullptr;
  });
}

void DedupIndex::resolve(Batch& batch) {
  for (std::size_t i = 0; i < batch.texts.size(); ++i) {
    const auto text = static_cast<std::uint32_t>(parents_.size());
    const bool is_short = batch.texts.is_short[i] != 0;
    parents_.push_back(text);
    counts_.short_texts += is_short;
    batch.entries[i] = BandTable::kNone;
    if (batch.shares_key[i] != 0) {
      const std::uint32_t twin = find_identical(batch, i);
      if (twin != BandTable::kNone) {
        parents_[text] = root(entries_[twin].text);
        ++counts_.identical;
        continue;
      }
      if (!is_short) parents_[text] = representative(batch, i);
    }
    if (parents_[text] == text || settings_.clustering == Clustering::transitive) {
      batch.entries[i] = static_cast<std::uint32_t>(entries_.size());
      entries_.push_back({batch.texts.shingles[i], text, is_short});
      seen_.push_back(text);
    }
  }
}

// The text's own number where nothing before it matches.
std::uint32_t DedupIndex::representative(Batch& batch, std::size_t i) {
  const auto text = static_cast<std::uint32_t>(parents_.size() - 1);
  const bool is_star = settings_.clustering == Clustering::star;
  const ShingleSet set = batch.texts.shingles[i].set();
  find_candidates(batch, i);
  std::uint32_t first = text;
  for (const std::uint32_t candidate : candidates_) {
    const Entry& entry = entries_[candidate];
    const std::uint32_t found = root(entry.text);
    // Nothing new could come of it.
    if (is_star ? found > first : found == root(text)) continue;
    if (!is_similar(set, entry.shingles.set(), settings_.threshold)) continue;
    first = std::min(first, found);
    // The smaller number is the root, so that the first text of a cluster is kept.
    if (!is_star) {
      const std::uint32_t own = root(text);
      parents_[std::max(own, found)] = std::min(own, found);
    }
  }
  return first;
}

void DedupIndex::find_candidates(Batch& batch, std::size_t i) {
  const auto text = static_cast<std::uint32_t>(parents_.size() - 1);
  candidates_.clear();
  for (std::size_t band = 1; band < tables_.size(); ++band) {
    visit_bucket(batch, band, i, [&](std::uint32_t entry) {
      if (seen_[entry] != text) candidates_.push_back(entry);
      seen_[entry] = text;
      return true;
    });
  }
  counts_.candidates += candidates_.size();
}

// The entry with the same set; kNone where there is none.
std::uint32_t DedupIndex::find_identical(Batch& batch, std::size_t i) {
  const ShingleSet set = batch.texts.shingles[i].set();
  std::uint32_t found = BandTable::kNone;
  visit_bucket(batch, 0, i, [&](std::uint32_t entry) {
    if (entries_[entry].shingles.set() == set) found = entry;
    return found == BandTable::kNone;
  });
  return found;
}

// Calls visit(entry) for every entry that has the text's key, until it returns false.
template <typename Visit>
void DedupIndex::visit_bucket(Batch& batch, std::size_t table, std::size_t i, const Visit& visit) {
  std::uint32_t* const previous = batch.previous.data() + table * batch.texts.size();
  std::size_t at = i;
  while (previous[at] < BandJoiner::kInTable) {
    const std::uint32_t before = previous[at];
    if (batch.entries[before] == BandTable::kNone) {
      previous[at] = previous[before];
    } else {
      if (!visit(batch.entries[before])) return;
      at = before;
    }
  }
  if (previous[at] != BandJoiner::kInTable) return;
  tables_[table].find(batch.texts.column(table)[i], visit);
}

// The new entries' shingles still lie in `storages`, among those of removed texts.
void DedupIndex::keep_shingles(std::size_t old_entries, std::list<SetStorage>& storages) {
  std::size_t needed = 0, stored = 0;
  for (std::size_t i = old_entries; i < entries_.size(); ++i) {
    needed += entries_[i].shingles.size * sizeof(std::uint64_t);
  }
  for (const SetStorage& storage : storages) stored += storage.bytes();
  if (stored - needed <= stored / 4) {
    for (SetStorage& storage : storages) storage_.take(std::move(storage));
  } else {
    for (std::size_t i = old_entries; i < entries_.size(); ++i) {
      const StoredShingles& old = entries_[i].shingles;
      entries_[i].shingles = storage_.store(old.values, old.size, old.is_set);
    }
  }
}

// Those of the new entries, in the place of those of all texts.
void DedupIndex::keep_keys(std::size_t old_entries, Batch& batch) {
  HugeVector<std::uint32_t>& keys = batch.texts.keys;
  std::size_t end = 0;
  for (std::size_t band = 0; band < tables_.size(); ++band) {
    const std::uint32_t* const column = batch.texts.column(band);
    for (std::size_t i = 0; i < batch.texts.size(); ++i) {
      if (batch.entries[i] != BandTable::kNone) keys[end++] = column[i];
    }
  }
  keys.resize(end);
  if (end < keys.capacity() / 2) keys.shrink_to_fit();
  waiting_keys_ = std::move(keys);
  waiting_ = entries_.size() - old_entries;
}

}  // namespace vikhr
