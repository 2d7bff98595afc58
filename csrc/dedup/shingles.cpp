#include "dedup/shingles.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "base/hash.hpp"

namespace vikhr {
namespace {

// Odd, and one more than twice an odd number: then two orders of the same words hardly ever agree.
constexpr std::uint64_t kBase = 0xC2B2AE3D27D4EB4Fu;
constexpr std::uint64_t kWholeText = 0x165667B19E3779F9u;
constexpr std::uint64_t kRawBytes = 0x27D4EB2F165667C5u;

std::uint64_t hash_bytes(std::string_view bytes) {
  std::uint64_t hash = hash_word(kRawBytes ^ bytes.size());
  for (; !bytes.empty(); bytes.remove_prefix(std::min<std::size_t>(8, bytes.size()))) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), std::min<std::size_t>(8, bytes.size()));
    hash = hash_word((hash + word) * kBase);
  }
  return hash;
}

// Hands the hash of each character on: one space between words, none at the ends.
template <typename Unit>
class CharacterSink {
 public:
  explicit CharacterSink(const Unit& unit) : unit_(unit) {}

  void letter(CodePoint c) {
    flush();
    if (is_apart_ && has_letters_) unit_(hash_word(' '));
    is_apart_ = false;
    has_letters_ = true;
    held_ = c;
  }
  void replace_letter(CodePoint c) { held_ = c; }
  void separator() {
    flush();
    is_apart_ = true;
  }

 private:
  // The last letter waits: a mark after it may change it.
  void flush() {
    if (held_ != 0) unit_(hash_word(held_));
    held_ = 0;
  }

  const Unit& unit_;
  CodePoint held_ = 0;
  bool is_apart_ = false;
  bool has_letters_ = false;
};

}  // namespace

void check(const ShingleKind& kind) {
  if (kind.length < 1 || kind.length > kMaxShingle) {
    throw std::invalid_argument("a shingle of " + std::to_string(kind.length) +
                                "; its length must be from 1 to " + std::to_string(kMaxShingle));
  }
}

bool Shingler::append(const Text& given, std::size_t document, InvalidUtf8 policy,
                      std::vector<std::uint64_t>& shingles) {
  refuse_huge(given.length, document);
  const std::string_view text = transcoder_.utf8(given);
  refuse_huge(text.size(), document);
  const std::size_t start = shingles.size();
  units_.clear();
  TextPlace place{document, 0, policy};
  if (kind_.unit == ShingleUnit::word) {
    while (place.offset < text.size()) {
      const std::string_view rest = text.substr(place.offset);
      const std::string_view piece = rest.substr(0, WordReader::piece_size(rest));
      words_.append(piece, place, units_);
      place.offset += piece.size();
      make_shingles(shingles);
    }
  } else {
    constexpr std::size_t kPiece = 1 << 12;
    const auto unit = [&](std::uint64_t hash) {
      units_.push_back(hash);
      if (units_.size() >= kPiece + kind_.length) make_shingles(shingles);
    };
    CharacterSink sink(unit);
    read_characters(text, place, sink);
    sink.separator();
    make_shingles(shingles);
  }
  if (shingles.size() > start) return false;
  std::uint64_t whole = kWholeText + units_.size();
  for (const std::uint64_t hash : units_) whole = hash_word(whole * kBase + hash);
  shingles.push_back(units_.empty() ? hash_bytes(text) : whole);
  return true;
}

// A polynomial in the units, rolled on, so that a unit costs the same however long a shingle is.
// The last units, fewer than a shingle has, stay for the next piece.
void Shingler::make_shingles(std::vector<std::uint64_t>& shingles) {
  const std::size_t length = kind_.length;
  if (units_.size() < length) return;
  std::uint64_t power = 1;  // kBase to the length
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < length; ++i) {
    sum = sum * kBase + units_[i];
    power *= kBase;
  }
  const std::size_t count = units_.size() - length + 1;
  const std::size_t start = shingles.size();
  shingles.resize(start + count);
  std::uint64_t* out = shingles.data() + start;
  out[0] = hash_word(sum);
  for (std::size_t i = 1; i < count; ++i) {
    sum = sum * kBase + units_[i + length - 1] - units_[i - 1] * power;
    out[i] = hash_word(sum);
  }
  units_.erase(units_.begin(), units_.begin() + static_cast<std::ptrdiff_t>(count));
}

// Hashes are spread evenly, so that each belongs close to its rank: a counting sort by the upper
// bits leaves little for the insertion sort.
void SetMaker::sort(std::uint64_t* values, std::size_t count) {
  constexpr std::size_t kMost = 1 << 16;  // whose work space stays in a near cache
  if (count > kMost) return std::sort(values, values + count);
  const auto bucket = [&](std::uint64_t value) { return (value >> 32) * count >> 32; };
  ends_.assign(count + 1, 0);
  for (std::size_t i = 0; i < count; ++i) ++ends_[bucket(values[i]) + 1];
  for (std::size_t i = 0; i < count; ++i) ends_[i + 1] += ends_[i];
  copy_.assign(values, values + count);
  for (const std::uint64_t value : copy_) values[ends_[bucket(value)]++] = value;
  for (std::size_t i = 1; i < count; ++i) {
    const std::uint64_t value = values[i];
    std::size_t at = i;
    for (; at > 0 && values[at - 1] > value; --at) values[at] = values[at - 1];
    values[at] = value;
  }
}

std::size_t SetMaker::make_set(std::uint64_t* values, std::size_t count) {
  sort(values, count);
  return static_cast<std::size_t>(std::unique(values, values + count) - values);
}

}  // namespace vikhr
