#include "bpe/pair_table.hpp"

#include <algorithm>
#include <numeric>

#include "bpe/model.hpp"

namespace vikhr {

// The slots are an odd number of them: were it a power of two, two pairs of a bucket whose hashes begin with the same
// bits would go to one slot whatever the bucket's number.
PairTable::PairTable(const std::vector<Pair>& pairs, Symbol absent)
    : absent_(absent), numbers_(pairs.size() / 4 + 1), slots_((pairs.size() + pairs.size() / 4) | 1) {
  constexpr int kSeeds = 16;  // one is enough, unless somebody chose the pairs to be a nuisance
  for (int i = 0; i < kSeeds; ++i) {
    seed_ = mix(kFactor, static_cast<std::uint64_t>(i) + 1);
    if (build(pairs)) return;
  }
  throw ModelError("no perfect hash of its merges can be found");
}

bool PairTable::build(const std::vector<Pair>& pairs) {
  constexpr std::uint32_t kNumbers = 1u << 16;
  std::fill(slots_.begin(), slots_.end(), kEmpty);
  std::vector<std::uint64_t> hashes;
  hashes.reserve(pairs.size());
  for (const Pair& pair : pairs) hashes.push_back(mix(key_of(pair.left, pair.right) ^ seed_, kFactor));

  // The pairs bucket by bucket, the fullest bucket first, while there is most room.
  std::vector<std::uint32_t> sizes(numbers_.size());
  for (const std::uint64_t hash : hashes) ++sizes[bucket_of(hash)];
  std::vector<std::uint32_t> order(pairs.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    const std::size_t first = bucket_of(hashes[a]);
    const std::size_t second = bucket_of(hashes[b]);
    return sizes[first] != sizes[second] ? sizes[first] > sizes[second] : first < second;
  });

  for (std::size_t start = 0, end = 0; start < order.size(); start = end) {
    const std::size_t bucket = bucket_of(hashes[order[start]]);
    end = start + sizes[bucket];
    std::uint32_t number = 0;
    std::size_t placed = start;
    while (placed < end) {
      const Pair& pair = pairs[order[placed]];
      std::uint64_t& slot = slots_[slot_of(hashes[order[placed]], number)];
      if (slot == kEmpty) {
        slot = key_of(pair.left, pair.right) << kResultBits | pair.result;
        ++placed;
        continue;
      }
      while (placed > start) slots_[slot_of(hashes[order[--placed]], number)] = kEmpty;
      if (++number == kNumbers) return false;
    }
    numbers_[bucket] = static_cast<std::uint16_t>(number);
  }
  return true;
}

}  // namespace vikhr
