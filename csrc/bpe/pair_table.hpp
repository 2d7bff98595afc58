// Which pairs of symbols merge, and into what: the one table that merging asks again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/hash.hpp"

namespace vikhr {

// One element of a text while it is merged: a piece id, or a character that is no piece.
using Symbol = std::uint32_t;
inline constexpr unsigned kSymbolBits = 22;
inline constexpr Symbol kBareCharacter = 1u << 21;  // | code point
inline constexpr Symbol kMaxPieces = 1u << 20;
inline constexpr Symbol kNoSymbol = ~Symbol{0};

// A perfect hash table: pairs are gathered in small buckets, and each bucket has a number that sends its pairs to slots
// of their own. So an absent pair, and most are, takes one look, and there is no branch for a processor to guess wrong.
class PairTable {
 public:
  struct Pair {
    Symbol left;
    Symbol right;
    Symbol result;  // below kMaxPieces
  };

  // `find` gives `absent` for all pairs but these, which differ from each other.
  PairTable(const std::vector<Pair>& pairs, Symbol absent);

  Symbol find(Symbol left, Symbol right) const {
    const std::uint64_t key = key_of(left, right);
    const std::uint64_t hash = mix(key ^ seed_, kFactor);
    const std::uint64_t slot = slots_[slot_of(hash, numbers_[bucket_of(hash)])];
    return slot >> kResultBits == key ? static_cast<Symbol>(slot & (kMaxPieces - 1)) : absent_;
  }

 private:
  static constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15u;
  static constexpr unsigned kResultBits = 20;
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};

  static std::uint64_t key_of(Symbol left, Symbol right) {
    return std::uint64_t{left} << kSymbolBits | right;
  }
  std::size_t bucket_of(std::uint64_t hash) const {
    return static_cast<std::size_t>((hash & 0xFFFFFFFFu) * numbers_.size() >> 32);
  }
  std::size_t slot_of(std::uint64_t hash, std::uint32_t number) const {
    const auto moved = static_cast<std::uint32_t>(hash >> 32) ^ number * 0x85EBCA6Bu;
    return static_cast<std::size_t>(std::uint64_t{moved} * slots_.size() >> 32);
  }
  bool build(const std::vector<Pair>& pairs);

  Symbol absent_;
  std::uint64_t seed_ = 0;
  std::vector<std::uint16_t> numbers_;  // by bucket
  std::vector<std::uint64_t> slots_;    // pair and result, or kEmpty
};

}  // namespace vikhr
