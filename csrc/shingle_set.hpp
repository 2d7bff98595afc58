// Sets of shingles as ascending arrays, and how much they have in common.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace vikhr {

struct ShingleSet {
  const std::uint64_t* values;
  std::size_t size;

  bool operator==(const ShingleSet& other) const {
    return size == other.size && std::equal(values, values + size, other.values);
  }
};

inline std::size_t common(const ShingleSet& a, const ShingleSet& b) {
  std::size_t i = 0, j = 0, count = 0;
  while (i < a.size && j < b.size) {  // without jumps, which could not be foreseen
    const std::uint64_t x = a.values[i], y = b.values[j];
    count += x == y;
    i += x <= y;
    j += y <= x;
  }
  return count;
}

// |a ∩ b| / |a ∪ b|, rounded once; neither is empty.
inline double jaccard(const ShingleSet& a, const ShingleSet& b) {
  const std::size_t both = common(a, b);
  return static_cast<double>(both) / static_cast<double>(a.size + b.size - both);
}

// Whether jaccard(a, b) >= threshold, which the sizes alone can rule out.
inline bool is_similar(const ShingleSet& a, const ShingleSet& b, double threshold) {
  const auto [least, most] = std::minmax(a.size, b.size);
  if (static_cast<double>(least) / static_cast<double>(most) < threshold) return false;
  return jaccard(a, b) >= threshold;
}

}  // namespace vikhr
