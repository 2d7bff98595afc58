// The saved form of a DedupIndex, little-endian:
//   magic, version; settings; counts that cannot be recomputed; texts, entries, values
//   parents       u32 [texts]
//   entry texts   u32 [entries], ascending
//   entry sizes   u32 [entries], 0 for a text shorter than a shingle, which has one value
//   set values    u64 [values], ascending in each set
//   checksum      u64 of everything before
// Band keys are made anew from the sets.
#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#include "dedup/dedup_index.hpp"
#include "base/hash.hpp"

namespace vikhr {
namespace {

constexpr char kMagic[8] = {'V', 'I', 'K', 'H', 'R', 'L', 'S', 'H'};
constexpr std::uint64_t kVersion = 1;

struct Header {
  char magic[8];
  std::uint64_t version;
  std::uint32_t shingle_unit;
  std::uint32_t shingle_length;
  std::uint32_t num_perm;
  std::uint32_t bands;
  std::uint64_t seed;
  double threshold;
  std::uint64_t clustering;
  std::uint64_t identical;
  std::uint64_t short_texts;
  std::uint64_t candidates;
  std::uint64_t texts;
  std::uint64_t entries;
  std::uint64_t values;
};
static_assert(std::is_trivially_copyable_v<Header> && sizeof(Header) == 13 * 8);

class Checksum {
 public:
  void add(std::string_view bytes) {
    size_ += bytes.size();
    std::uint64_t word = 0;
    for (; bytes.size() >= sizeof word; bytes.remove_prefix(sizeof word)) {
      std::memcpy(&word, bytes.data(), sizeof word);
      state_ = mix(state_ ^ word, kFactor) + word;
    }
    if (bytes.empty()) return;
    word = 0;
    std::memcpy(&word, bytes.data(), bytes.size());
    state_ = mix(state_ ^ word, kFactor) + word;
  }
  std::uint64_t value() const { return hash_word(state_ ^ size_); }

 private:
  static constexpr std::uint64_t kFactor = 0x9FB21C651E98DF25u;
  std::uint64_t state_ = 0;
  std::uint64_t size_ = 0;
};

// Everything in pieces that the checksum reads in whole words but for the last of an array.
class Writer {
 public:
  explicit Writer(const std::function<void(std::string_view)>& write) : write_(write) {}

  template <typename Value>
  void append(const Value* values, std::size_t count) {
    const std::string_view bytes(reinterpret_cast<const char*>(values), count * sizeof *values);
    buffer_.append(bytes);
    if (buffer_.size() >= kPiece) flush(buffer_.size() / 8 * 8);
  }
  void finish() {
    flush(buffer_.size());
    const std::uint64_t value = checksum_.value();
    write_({reinterpret_cast<const char*>(&value), sizeof value});
  }

 private:
  static constexpr std::size_t kPiece = 1 << 20;

  void flush(std::size_t size) {
    const std::string_view bytes(buffer_.data(), size);
    checksum_.add(bytes);
    write_(bytes);
    buffer_.erase(0, size);
  }

  const std::function<void(std::string_view)>& write_;
  std::string buffer_;
  Checksum checksum_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <typename Value>
  std::vector<Value> take(std::uint64_t count) {
    if (count > bytes_.size() / sizeof(Value)) throw IndexError("the file is cut short");
    std::vector<Value> values(static_cast<std::size_t>(count));
    const std::size_t size = values.size() * sizeof(Value);
    if (size != 0) std::memcpy(values.data(), bytes_.data(), size);
    bytes_.remove_prefix(size);
    return values;
  }
  bool is_at_end() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

std::string_view without_checksum(std::string_view bytes) {
  std::uint64_t expected;
  if (bytes.size() < sizeof(Header) + sizeof expected ||
      std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    throw IndexError("not a deduplication index");
  }
  std::memcpy(&expected, bytes.data() + bytes.size() - sizeof expected, sizeof expected);
  bytes.remove_suffix(sizeof expected);
  if (index_checksum(bytes) != expected) throw IndexError("damaged or cut: the checksum differs");
  return bytes;
}

DedupSettings settings_of(const Header& header) {
  if (header.version != kVersion) {
    throw IndexError("version " + std::to_string(header.version) + " of the format; " +
                     std::to_string(kVersion) + " is known");
  }
  if (header.shingle_unit > 1 || header.clustering > 1) throw IndexError("unknown settings");
  return {{static_cast<ShingleUnit>(header.shingle_unit), header.shingle_length},
          {header.num_perm, header.bands, header.seed},
          header.threshold,
          static_cast<Clustering>(header.clustering)};
}

void require(bool condition) {
  if (!condition) throw IndexError("its parts contradict each other");
}

// No two of the sets are equal.
void require_different(const PreparedTexts& texts) {
  std::vector<std::uint32_t> previous(texts.size());
  BandJoiner joiner;
  joiner.take(texts.column(0), nullptr, texts.size());
  joiner.link(BandTable(), previous.data());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    for (std::uint32_t j = previous[i]; j != BandJoiner::kNone; j = previous[j]) {
      require(!(texts.shingles[i].set() == texts.shingles[j].set()));
    }
  }
}

}  // namespace

std::uint64_t index_checksum(std::string_view bytes) {
  Checksum checksum;
  checksum.add(bytes);
  return checksum.value();
}

void DedupIndex::save(const std::function<void(std::string_view)>& write) {
  const std::lock_guard<std::mutex> lock(mutex_);
  make_sets_of_waiting(1);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.shingle_unit = static_cast<std::uint32_t>(settings_.shingle.unit);
  header.shingle_length = settings_.shingle.length;
  header.num_perm = settings_.minhash.num_perm;
  header.bands = settings_.minhash.bands;
  header.seed = settings_.minhash.seed;
  header.threshold = settings_.threshold;
  header.clustering = static_cast<std::uint64_t>(settings_.clustering);
  header.identical = counts_.identical;
  header.short_texts = counts_.short_texts;
  header.candidates = counts_.candidates;
  header.texts = parents_.size();
  header.entries = entries_.size();
  for (const Entry& entry : entries_) header.values += entry.shingles.size;

  Writer writer(write);
  writer.append(&header, 1);
  writer.append(parents_.data(), parents_.size());
  for (const Entry& entry : entries_) writer.append(&entry.text, 1);
  for (const Entry& entry : entries_) {
    const auto size = entry.is_short ? 0 : static_cast<std::uint32_t>(entry.shingles.size);
    writer.append(&size, 1);
  }
  for (const Entry& entry : entries_) writer.append(entry.shingles.values, entry.shingles.size);
  writer.finish();
}

std::unique_ptr<DedupIndex> DedupIndex::load(std::string_view bytes, Isa isa) {
  Reader reader(without_checksum(bytes));
  const Header header = reader.take<Header>(1)[0];
  std::unique_ptr<DedupIndex> index;
  try {
    index = std::make_unique<DedupIndex>(settings_of(header), isa);
  } catch (const std::invalid_argument& error) {
    throw IndexError(error.what());
  }
  require(header.texts < BandJoiner::kInTable && header.identical <= header.texts &&
          header.short_texts <= header.texts && header.entries <= header.texts);
  index->parents_ = reader.take<std::uint32_t>(header.texts);
  const auto texts = reader.take<std::uint32_t>(header.entries);
  const auto sizes = reader.take<std::uint32_t>(header.entries);
  const auto values = reader.take<std::uint64_t>(header.values);
  require(reader.is_at_end());
  for (std::size_t i = 0; i < header.texts; ++i) require(index->parents_[i] <= i);

  const bool is_star = index->settings_.clustering == Clustering::star;
  PreparedTexts prepared(texts.size(), header.bands);
  Preparer preparer(index->settings_.shingle, index->minhash_, isa);
  std::size_t start = 0;
  std::size_t next_text = 0;  // every kept text has an entry, in a star none else has
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const ShingleSet set{values.data() + start, std::max<std::size_t>(1, sizes[i])};
    require(set.size <= values.size() - start && texts[i] < header.texts && texts[i] >= next_text);
    require(!is_star || index->parents_[texts[i]] == texts[i]);
    for (; next_text < texts[i]; ++next_text) require(index->parents_[next_text] != next_text);
    ++next_text;
    require(std::adjacent_find(set.values, set.values + set.size, std::greater_equal<>()) ==
            set.values + set.size);
    prepared.shingles[i] = index->storage_.store(set.values, set.size, true);
    preparer.make_keys(prepared, i);
    index->entries_.push_back({prepared.shingles[i], texts[i], sizes[i] == 0});
    index->seen_.push_back(texts[i]);
    start += set.size;
  }
  for (; next_text < header.texts; ++next_text) require(index->parents_[next_text] != next_text);
  require(start == values.size());
  require_different(prepared);
  index->waiting_keys_ = std::move(prepared.keys);
  index->waiting_ = texts.size();
  if (is_star) {
    for (const std::uint32_t parent : index->parents_) require(index->parents_[parent] == parent);
  }
  index->counts_.identical = header.identical;
  index->counts_.short_texts = header.short_texts;
  index->counts_.candidates = header.candidates;
  return index;
}

}  // namespace vikhr
