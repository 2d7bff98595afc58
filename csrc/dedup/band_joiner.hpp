// Which texts of a batch have equal keys in a band, and the filling of the band's table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dedup/band_table.hpp"
#include "base/huge_memory.hpp"
#include "base/threads.hpp"

namespace vikhr {

// One thread's work space. A batch's keys are brought nearly in order first: looking each of them
// up where it happens to lie would be a cache miss for every text and band.
class BandJoiner {
 public:
  static constexpr std::uint32_t kNone = BandTable::kNone;
  static constexpr std::uint32_t kInTable = kNone - 1;

  // Takes a key a text; those where `is_left_out` (nullptr for none) is not 0 take no part.
  void take(const std::uint32_t* keys, const std::uint8_t* is_left_out, std::size_t count);

  // Writes for each text the last one before it that has its key; where there is none, kInTable
  // if the table has the key, and otherwise kNone.
  void link(const BandTable& table, std::uint32_t* previous);

  // Puts every text into the table under the number first + text.
  void insert(std::uint32_t first, BandTable& table) const;

 private:
  struct Pair {
    std::uint32_t key;
    std::uint32_t text;
  };

  void link_partition(const Pair* pairs, std::size_t count, const BandTable& table,
                      std::uint32_t* previous);

  std::size_t count_ = 0;            // of texts, those left out too
  HugeVector<Pair> pairs_;           // by the upper bits of the keys, and then by the texts
  std::vector<std::size_t> starts_;  // of the partitions with equal upper bits, and the end
  std::vector<Pair> last_;           // a hash table: of each key the last text so far
};

// So many as are worth starting for so many texts.
inline unsigned useful_threads(std::size_t texts, unsigned threads) {
  return texts < (1 << 12) ? 1 : resolve_threads(threads);
}

// Calls work(joiner, table) for each of the tables, on threads if there are enough texts.
template <typename Work>
void for_each_table(std::size_t tables, std::size_t texts, unsigned threads, const Work& work) {
  run_blocks(tables, useful_threads(texts, threads), [&]() {
    return [&, joiner = BandJoiner()](std::size_t table) mutable { work(joiner, table); };
  });
}

}  // namespace vikhr
