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

// |a ∩ b| / |a ∪ b| of sets of these sizes with so much in common, rounded once.
inline double jaccard(std::size_t a, std::size_t b, std::size_t both) {
  return static_cast<double>(both) / static_cast<double>(a + b - both);
}

// Two sets walked through side by side.
class Intersection {
 public:
  Intersection(const ShingleSet& a, const ShingleSet& b) : a_(a), b_(b) {}

  bool is_done() const { return i_ == a_.size || j_ == b_.size; }

  // At most so many values on.
  void step(std::size_t steps) {
    for (; steps > 0 && !is_done(); --steps) {  // no other jumps, which could not be foreseen
      const std::uint64_t x = a_.values[i_], y = b_.values[j_];
      both_ += x == y;
      i_ += x <= y;
      j_ += y <= x;
    }
  }

  // The similarity if all that is left of the smaller rest is in the other one, too.
  double most() const {
    return jaccard(a_.size, b_.size, both_ + std::min(a_.size - i_, b_.size - j_));
  }

 private:
  ShingleSet a_;
  ShingleSet b_;
  std::size_t i_ = 0;
  std::size_t j_ = 0;
  std::size_t both_ = 0;
};

// Neither set is empty.
inline double jaccard(const ShingleSet& a, const ShingleSet& b) {
  Intersection walk(a, b);
  walk.step(a.size + b.size);
  return walk.most();
}

// Whether jaccard(a, b) >= threshold, looking no further than needed.
inline bool is_similar(const ShingleSet& a, const ShingleSet& b, double threshold) {
  constexpr std::size_t kSteps = 32;
  Intersection walk(a, b);
  for (; walk.most() >= threshold; walk.step(kSteps)) {
    if (walk.is_done()) return true;
  }
  return false;
}

}  // namespace vikhr
