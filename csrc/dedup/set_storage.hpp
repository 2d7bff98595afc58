// Where the shingles of many texts lie, one text's after another's in large chunks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "base/huge_memory.hpp"
#include "dedup/shingle_set.hpp"

namespace vikhr {

// Shingles as they were read, or as a set: most texts are never compared with another one.
struct StoredShingles {
  std::uint64_t* values;
  std::uint32_t size;
  bool is_set;  // ascending, each once

  ShingleSet set() const { return {values, size}; }
};

class SetStorage {
 public:
  StoredShingles store(const std::uint64_t* values, std::size_t size, bool is_set) {
    if (left_ < size) {
      left_ = std::max(kChunk, size);
      chunks_.emplace_back(HugeAllocator<std::uint64_t>().allocate(left_));
      next_ = chunks_.back().get();
      bytes_ += left_ * sizeof(std::uint64_t);
    }
    std::copy_n(values, size, next_);
    const StoredShingles stored{next_, static_cast<std::uint32_t>(size), is_set};
    next_ += size;
    left_ -= size;
    return stored;
  }

  // What the other one holds stays where it is, and is this one's.
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
