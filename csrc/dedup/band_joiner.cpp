#include "dedup/band_joiner.hpp"

#include <algorithm>

namespace vikhr {
namespace {

constexpr std::size_t kAhead = 8;            // pairs, for what a table that fits no cache needs
constexpr std::size_t kPartition = 1 << 9;   // pairs, about: their hash table fits a near cache
constexpr unsigned kMostPartitionBits = 10;  // so many places can be written to in turn

unsigned partition_bits(std::size_t count) {
  unsigned bits = 0;
  while (bits < kMostPartitionBits && count >> bits > kPartition) ++bits;
  return bits;
}

}  // namespace

void BandJoiner::take(const std::uint32_t* keys, const std::uint8_t* is_left_out,
                      std::size_t count) {
  const unsigned bits = partition_bits(count);
  const auto partition = [&](std::uint32_t key) { return std::uint64_t{key} << bits >> 32; };
  const auto takes_part = [&](std::size_t i) {
    return is_left_out == nullptr || is_left_out[i] == 0;
  };
  count_ = count;
  pairs_.resize(count);
  starts_.assign((std::size_t{1} << bits) + 2, 0);
  // starts_[p + 1] moves from the start of partition p to its end.
  std::size_t* const ends = starts_.data() + 1;
  for (std::size_t i = 0; i < count; ++i) ends[partition(keys[i]) + 1] += takes_part(i);
  for (std::size_t p = 1; p + 1 < starts_.size(); ++p) ends[p] += ends[p - 1];
  for (std::size_t i = 0; i < count; ++i) {
    const Pair pair{keys[i], static_cast<std::uint32_t>(i)};
    if (takes_part(i)) pairs_[ends[partition(pair.key)]++] = pair;
  }
  starts_.pop_back();
}

void BandJoiner::link(const BandTable& table, std::uint32_t* previous) {
  std::fill_n(previous, count_, kNone);
  for (std::size_t p = 0; p + 1 < starts_.size(); ++p) {
    link_partition(pairs_.data() + starts_[p], starts_[p + 1] - starts_[p], table, previous);
  }
}

void BandJoiner::link_partition(const Pair* pairs, std::size_t count, const BandTable& table,
                                std::uint32_t* previous) {
  std::size_t slots = 16;
  while (slots < 2 * count) slots *= 2;
  last_.assign(slots, {0, kNone});
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) table.prefetch(pairs[i + kAhead].key);
    const Pair& pair = pairs[i];
    // The lower bits: a partition's upper ones are all the same.
    std::size_t slot = pair.key & (slots - 1);
    while (last_[slot].text != kNone && last_[slot].key != pair.key) {
      slot = (slot + 1) & (slots - 1);
    }
    if (last_[slot].text != kNone) {
      previous[pair.text] = last_[slot].text;
    } else if (table.contains(pair.key)) {
      previous[pair.text] = kInTable;
    }
    last_[slot] = pair;
  }
}

void BandJoiner::insert(std::uint32_t first, BandTable& table) const {
  const std::size_t count = starts_.back();
  table.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) table.prefetch(pairs_[i + kAhead].key);
    table.insert(pairs_[i].key, first + pairs_[i].text);
  }
}

}  // namespace vikhr
