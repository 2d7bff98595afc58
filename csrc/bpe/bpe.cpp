#include "bpe/bpe.hpp"

#include <cstring>
#include <utility>

#include "bpe/text_encoder.hpp"

namespace vikhr {
namespace {

bool starts_with_space_symbol(std::string_view piece) {
  return piece.substr(0, kSpaceSymbolUtf8.size()) == kSpaceSymbolUtf8;
}

}  // namespace

BpeEncoder::BpeEncoder(std::string_view model_file) : vocabulary_(parse_model(model_file)) {
  surfaces_.reserve(static_cast<std::size_t>(vocabulary_.size()));
  for (Id id = 0; id < vocabulary_.size(); ++id) {
    std::string surface;
    append_with_spaces(vocabulary_.piece(id).text, surface);
    surfaces_.push_back(std::move(surface));
  }
  split_unused();
}

void BpeEncoder::split_unused() {
  Merger<Vocabulary> merger(vocabulary_);
  std::vector<Symbol> symbols;
  for (Id id = 0; id < vocabulary_.size(); ++id) {
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type != PieceType::unused) continue;
    if (decode_valid_character(piece.text.data()).length == piece.text.size()) continue;
    const Merger<Vocabulary>::Pair last = merger.merge(piece.text, symbols);
    if (symbols.size() == 1) unused_.insert(static_cast<std::uint64_t>(id), last);
  }
}

BpeEncoder::~BpeEncoder() = default;

IdBuffer BpeEncoder::encode(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                            std::int64_t* offsets) const {
  return workers_.encode(texts, policy, threads, offsets,
                         [this] { return std::make_unique<Worker>(vocabulary_, unused_, cache_); });
}

void BpeEncoder::decode(const std::int64_t* ids, std::size_t count, std::string& text) const {
  const Model& model = vocabulary_.model();
  const bool drops_prefix = model.add_dummy_prefix || model.remove_extra_whitespaces;
  const std::size_t start = text.size();
  bool may_drop = true;
  std::string bytes;
  for (std::size_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary_.size()) {
      throw IdError("id " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                    " is not one of the vocabulary's " + std::to_string(vocabulary_.size()));
    }
    const Id id = static_cast<Id>(ids[i]);
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type == PieceType::byte) {
      bytes.push_back(static_cast<char>(vocabulary_.byte_value(id)));
      continue;
    }
    append_repaired(bytes, text);
    bytes.clear();
    if (text.size() > start) may_drop = false;
    if (piece.type == PieceType::control) continue;
    const bool drops = may_drop && drops_prefix && starts_with_space_symbol(piece.text);
    if (piece.type == PieceType::unknown) {
      text.append(model.unknown_surface);
    } else {
      text.append(surfaces_[static_cast<std::size_t>(id)], drops ? 1 : 0);
    }
    if ((drops && !model.remove_extra_whitespaces) || text.size() > start) may_drop = false;
  }
  append_repaired(bytes, text);
}

}  // namespace vikhr
