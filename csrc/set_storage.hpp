// Where many shingle sets lie, one after another in large chunks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "huge_memory.hpp"
#include "shingle_set.hpp"

namespace vikhr {

class SetStorage {
 public:
  ShingleSet store(const ShingleSet& set) {
    if (left_ < set.size) {
      left_ = std::max(kChunk, set.size);
      chunks_.emplace_back(HugeAllocator<std::uint64_t>().allocate(left_));
      next_ = chunks_.back().get();
      bytes_ += left_ * sizeof(std::uint64_t);
    }
    std::copy_n(set.values, set.size, next_);
    const ShingleSet stored{next_, set.size};
    next_ += set.size;
    left_ -= set.size;
    return stored;
  }

  // The other's sets stay where they are, and are this one's.
  void take(SetStorage&& other) {
    std::move(other.chunks_.begin(), other.chunks_.end(), std::back_inserter(chunks_));
    bytes_ += other.bytes_;
    if (left_ < other.left_) {
      next_ = other.next_;
      left_ = other.left_;
    }
    other = SetStorage();
  }

  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kChunk = kHugePage / sizeof(std::uint64_t);

  std::vector<std::unique_ptr<std::uint64_t[], HugeAllocator<std::uint64_t>::Free>> chunks_;
  std::uint64_t* next_ = nullptr;
  std::size_t left_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace vikhr
