#include "bpe/byte_vocabulary.hpp"

#include "base/hash.hpp"
#include "bpe/model.hpp"

namespace vikhr {

ByteVocabulary::ByteVocabulary(std::vector<std::pair<std::string, Id>> tokens, const std::vector<Merge>& merges,
                               bool takes_whole)
    : tokens_(std::move(tokens)) {
  byte_ids_.fill(-1);
  for (const auto& [bytes, id] : tokens_) {
    if (id < 0 || static_cast<Symbol>(id) >= kNoUnit) throw ModelError("an id of 2^21 or more");
    if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    if (takes_whole) whole_.emplace(bytes, id);
  }
  if (merges.size() >= kMaxPieces) throw ModelError("2^20 merges or more");
  std::unordered_map<std::uint64_t, std::size_t> places;
  for (std::size_t i = 0; i < merges.size(); ++i) {
    for (const Id id : {merges[i].left, merges[i].right, merges[i].result}) {
      if (id < 0 || static_cast<Symbol>(id) >= kNoUnit) throw ModelError("an id of 2^21 or more");
    }
    places[static_cast<std::uint64_t>(merges[i].left) << 32 | static_cast<std::uint64_t>(merges[i].right)] = i;
    results_.push_back(static_cast<Symbol>(merges[i].result));
  }
  std::vector<PairTable::Pair> pairs;
  for (const auto& [pair, place] : places) {
    pairs.push_back({static_cast<Symbol>(pair >> 32), static_cast<Symbol>(pair), static_cast<Symbol>(place)});
  }
  merges_.emplace(pairs, no_merge());
  byte_merges_.assign(1 << 16, no_merge());
  for (std::size_t pair = 0; pair < byte_merges_.size(); ++pair) {
    const Id left = byte_ids_[pair >> 8], right = byte_ids_[pair & 0xFF];
    if (left >= 0 && right >= 0) {
      byte_merges_[pair] = merges_->find(static_cast<Symbol>(left), static_cast<Symbol>(right));
    }
  }
}

}  // namespace vikhr
