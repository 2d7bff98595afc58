#include "packing/packing.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace vikhr {
namespace {

using Bin = std::uint32_t;  // in a block

constexpr std::int64_t kMaxCapacity = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMaxWindows = std::size_t{1} << 48;
constexpr std::size_t kMaxBlockWindows = std::numeric_limits<Bin>::max() - 1;

struct Window {
  std::int64_t document;
  std::int64_t start;
  std::int64_t length;
};

unsigned lowest_bit(std::uint64_t word) { return static_cast<unsigned>(__builtin_ctzll(word)); }

// A set of numbers below a bound that finds the smallest member not below a given one: bits, bits
// that tell which words of them are not zero, and so on up to a single word.
class OrderedSet {
 public:
  static constexpr std::size_t kNone = ~std::size_t{0};

  explicit OrderedSet(std::size_t bound) {
    do {
      bound = (bound + 63) / 64;
      levels_.emplace_back(bound);
    } while (bound > 1);
  }

  void insert(std::size_t value) {
    for (auto& level : levels_) {
      level[value / 64] |= bit(value);
      value /= 64;
    }
  }

  void erase(std::size_t value) {
    for (auto& level : levels_) {
      level[value / 64] &= ~bit(value);
      if (level[value / 64] != 0) return;
      value /= 64;
    }
  }

  std::size_t find_from(std::size_t value) const {
    for (std::size_t depth = 0; depth < levels_.size(); ++depth) {
      const std::size_t word = value / 64;
      if (word >= levels_[depth].size()) return kNone;
      const std::uint64_t rest = levels_[depth][word] & (~std::uint64_t{0} << value % 64);
      if (rest != 0) return descend(depth, word * 64 + lowest_bit(rest));
      value = word + 1;
    }
    return kNone;
  }

 private:
  static std::uint64_t bit(std::size_t value) { return std::uint64_t{1} << value % 64; }

  std::size_t descend(std::size_t depth, std::size_t value) const {
    while (depth > 0) value = value * 64 + lowest_bit(levels_[--depth][value]);
    return value;
  }

  std::vector<std::vector<std::uint64_t>> levels_;
};

// The open bins of one block, by free space.
class Bins {
 public:
  explicit Bins(std::size_t capacity)
      : capacity_(capacity), free_spaces_(capacity + 1), last_filled_(capacity + 1, kNone) {}

  // Puts a window of this length into the best bin, and returns the bin.
  Bin put(std::size_t length) {
    std::size_t space = free_spaces_.find_from(length);
    Bin bin;
    if (space == OrderedSet::kNone) {
      space = capacity_;
      bin = static_cast<Bin>(next_.size());
      next_.push_back(kNone);
    } else {
      bin = last_filled_[space];
      last_filled_[space] = next_[bin];
      if (next_[bin] == kNone) free_spaces_.erase(space);
    }
    space -= length;
    if (last_filled_[space] == kNone) free_spaces_.insert(space);
    next_[bin] = last_filled_[space];
    last_filled_[space] = bin;
    return bin;
  }

  std::size_t size() const { return next_.size(); }

  // Forgets the bins in time proportional to their number, not to the capacity.
  void clear() {
    for (std::size_t space = free_spaces_.find_from(0); space != OrderedSet::kNone;
         space = free_spaces_.find_from(space)) {
      free_spaces_.erase(space);
      last_filled_[space] = kNone;
    }
    next_.clear();
  }

 private:
  static constexpr Bin kNone = std::numeric_limits<Bin>::max();

  std::size_t capacity_;
  OrderedSet free_spaces_;
  std::vector<Bin> last_filled_;  // by free space: the head of a list of bins ...
  std::vector<Bin> next_;         // ... that goes on here
};

struct Totals {
  std::int64_t positions = 0;
  std::size_t windows = 0;
};

Totals count(const std::int64_t* lengths, std::size_t documents, std::int64_t capacity) {
  Totals totals;
  for (std::size_t i = 0; i < documents; ++i) {
    if (lengths[i] < 1) {
      throw std::invalid_argument("document " + std::to_string(i) + " has length " +
                                  std::to_string(lengths[i]) + "; it must be at least 1");
    }
    if (__builtin_add_overflow(totals.positions, lengths[i], &totals.positions)) {
      throw std::invalid_argument("the lengths sum to more than 2^63");
    }
    totals.windows += static_cast<std::size_t>((lengths[i] - 1) / capacity) + 1;
  }
  if (totals.windows > kMaxWindows) {
    throw std::invalid_argument("more than 2^48 windows; choose a larger capacity");
  }
  return totals;
}

class Packer {
 public:
  Packer(std::size_t windows, std::int64_t capacity)
      : capacity_(capacity), bins_(static_cast<std::size_t>(capacity)) {
    packing_.window_document.resize(windows);
    packing_.window_start.resize(windows);
    packing_.window_length.resize(windows);
    packing_.sequence_offsets.push_back(0);
  }

  void add(std::int64_t document, std::int64_t length) {
    for (std::int64_t start = 0; start < length; start += capacity_) {
      windows_.push_back({document, start, std::min(capacity_, length - start)});
    }
    if (windows_.size() > kMaxBlockWindows) {
      throw std::invalid_argument("a block of more than 2^32 windows; choose a smaller block");
    }
  }

  // Packs the windows added since the last time.
  void finish_block() {
    sort_longest_first();
    bin_of_.clear();
    for (const Window& window : windows_) {
      bin_of_.push_back(bins_.put(static_cast<std::size_t>(window.length)));
    }
    place();
    bins_.clear();
    windows_.clear();
  }

  Packing take() { return std::move(packing_); }

 private:
  // Windows of equal length stay in their order.
  void sort_longest_first() {
    const auto longer = [](const Window& a, const Window& b) { return a.length > b.length; };
    const auto capacity = static_cast<std::size_t>(capacity_);
    if (windows_.size() < capacity / 8) {
      std::stable_sort(windows_.begin(), windows_.end(), longer);
      return;
    }
    // Enough windows to pay for counting every length.
    ends_.assign(capacity + 1, 0);
    const auto shortness = [&](const Window& window) { return capacity_ - window.length; };
    for (const Window& window : windows_) ++ends_[static_cast<std::size_t>(shortness(window)) + 1];
    for (std::size_t i = 0; i < capacity; ++i) ends_[i + 1] += ends_[i];
    sorted_.resize(windows_.size());
    for (const Window& window : windows_) {
      sorted_[ends_[static_cast<std::size_t>(shortness(window))]++] = window;
    }
    windows_.swap(sorted_);
  }

  // Writes the windows bin after bin; a counting sort keeps their order inside a bin.
  void place() {
    const auto base = static_cast<std::size_t>(packing_.sequence_offsets.back());
    ends_.assign(bins_.size() + 1, 0);
    for (const Bin bin : bin_of_) ++ends_[bin + 1];
    for (std::size_t bin = 0; bin < bins_.size(); ++bin) {
      ends_[bin + 1] += ends_[bin];
      packing_.sequence_offsets.push_back(static_cast<std::int64_t>(base + ends_[bin + 1]));
    }
    for (std::size_t i = 0; i < windows_.size(); ++i) {
      const std::size_t at = base + ends_[bin_of_[i]]++;
      packing_.window_document[at] = windows_[i].document;
      packing_.window_start[at] = windows_[i].start;
      packing_.window_length[at] = windows_[i].length;
    }
  }

  std::int64_t capacity_;
  Bins bins_;
  Packing packing_;
  std::vector<Window> windows_;
  std::vector<Window> sorted_;
  std::vector<Bin> bin_of_;
  std::vector<std::size_t> ends_;  // of the groups of a counting sort
};

}  // namespace

Packing pack_windows(const std::int64_t* lengths, std::size_t documents, std::int64_t capacity,
                     std::int64_t block) {
  if (capacity < 1 || capacity > kMaxCapacity) {
    throw std::invalid_argument("capacity is " + std::to_string(capacity) +
                                "; it must be between 1 and " + std::to_string(kMaxCapacity));
  }
  if (block < 1) {
    throw std::invalid_argument("block is " + std::to_string(block) + "; it must be at least 1");
  }
  const Totals totals = count(lengths, documents, capacity);
  // More room than there is text packs the same, and would cost memory.
  Packer packer(totals.windows, std::min(capacity, totals.positions));
  std::int64_t left = block;
  for (std::size_t i = 0; i < documents; ++i) {
    packer.add(static_cast<std::int64_t>(i), lengths[i]);
    if (--left == 0 || i + 1 == documents) {
      packer.finish_block();
      left = block;
    }
  }
  return packer.take();
}

}  // namespace vikhr
