#include "bpe/vocabulary.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <utility>

namespace vikhr {
namespace {

constexpr std::size_t kMaxPieceBytes = 8000;  // SentencePiece's own limit
constexpr std::string_view kNulPiece("\0", 1);
constexpr const char* kHowToTrain =
    "; train a fitting model with `vikhr-fast tokenizer train`, which sets "
    "model_type=bpe, normalization_rule_name=identity, remove_extra_whitespaces=false";

std::string byte_piece(unsigned value) {
  char text[8];
  std::snprintf(text, sizeof text, "<0x%02X>", value);
  return text;
}

// Orders floats as SentencePiece does, by their bits: total, with -0 before +0.
std::uint32_t sortable(float score) {
  std::uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits >> 31 != 0 ? ~bits : bits | 1u << 31;
}

}  // namespace

Vocabulary::Vocabulary(Model model) : model_(std::move(model)) {
  refuse_other_kinds();
  index_pieces();
  find_bytes();
  add_characters();
  add_ranks();
  add_merges();
  find_separate();
}

void Vocabulary::refuse_other_kinds() const {
  const auto refuse = [](const std::string& what) { throw ModelError(what + kHowToTrain); };
  switch (model_.type) {
    case ModelType::bpe: break;
    case ModelType::unigram: refuse("a unigram model; only BPE models can be encoded"); break;
    case ModelType::word: refuse("a word model; only BPE models can be encoded"); break;
    case ModelType::character: refuse("a char model; only BPE models can be encoded"); break;
  }
  if (model_.has_normalizer_rules) {
    refuse("its normaliser is " +
           (model_.normalizer_name.empty() ? "not identity" : model_.normalizer_name) +
           "; only identity normalisation can be encoded");
  }
  if (model_.has_denormalizer_rules) refuse("it has denormalisation rules, which are not known");
  if (model_.treat_whitespace_as_suffix) {
    refuse("treat_whitespace_as_suffix is set; only whitespace before words can be encoded");
  }
}

bool Vocabulary::is_ignored(const Piece& piece) const {
  // Some converters add the piece "\0" beside <0x00>; SentencePiece passes over it.
  return piece.text == kNulPiece && (model_.byte_fallback || piece.type == PieceType::unused);
}

void Vocabulary::index_pieces() {
  if (model_.pieces.size() >= kMaxPieces) throw ModelError("more than 2^20 pieces");
  ids_.reserve(model_.pieces.size());
  for (Id id = 0; id < size(); ++id) {
    const Piece& entry = piece(id);
    const auto fail = [&](const char* what) {
      throw ModelError("piece " + std::to_string(id) + " " + what);
    };
    if (entry.text.empty()) fail("is empty");
    if (entry.text.size() >= kMaxPieceBytes) fail("is longer than 7999 bytes");
    if (is_ignored(entry)) continue;
    has_unused_ |= entry.type == PieceType::unused;
    if (entry.text.find('\0') != std::string::npos) fail("contains a NUL character");
    if (!ids_.emplace(entry.text, id).second) fail("occurs a second time");
    if (entry.type == PieceType::unknown) {
      if (unknown_id_ >= 0) fail("is a second piece of type UNKNOWN");
      unknown_id_ = id;
    }
    if (entry.type == PieceType::user_defined) {
      const std::string text = normalized(entry.text);
      if (!text.empty()) user_defined_.add(text, id);
      user_defined_as_written_.add(entry.text, id);
    }
  }
  if (unknown_id_ < 0 && !model_.byte_fallback) throw ModelError("no piece of type UNKNOWN");
}

void Vocabulary::find_bytes() {
  for (unsigned value = 0; value < 256; ++value) {
    const Id id = find(byte_piece(value));
    if (id >= 0 && piece(id).type == PieceType::byte) byte_ids_[value] = id;
  }
  const auto known =
      std::count_if(byte_ids_.begin(), byte_ids_.end(), [](Id id) { return id >= 0; });
  const auto typed = std::count_if(model_.pieces.begin(), model_.pieces.end(),
                                   [](const Piece& p) { return p.type == PieceType::byte; });
  if (typed != (model_.byte_fallback ? 256 : 0) || typed != known) {
    throw ModelError(std::string("byte_fallback is ") + (model_.byte_fallback ? "on" : "off") +
                     ", but there are " + std::to_string(known) + " byte pieces <0x00> to <0xFF>" +
                     (typed != known ? " and others" : ""));
  }
}

Id Vocabulary::find(std::string_view piece) const {
  const auto found = ids_.find(piece);
  return found == ids_.end() ? -1 : found->second;
}

Id Vocabulary::special_id(std::string_view text, PieceType type) const {
  Id id = find(text);
  if (id < 0) id = unknown_id_;  // as SentencePiece: an absent name means the unknown piece
  return id >= 0 && piece(id).type == type ? id : -1;
}

int Vocabulary::byte_value(Id id) const {
  return static_cast<int>(std::stoul(piece(id).text.substr(3, 2), nullptr, 16));
}

bool Vocabulary::can_merge(Id id) const {
  const Piece& entry = piece(id);
  return !is_ignored(entry) &&
         (entry.type == PieceType::normal || entry.type == PieceType::user_defined ||
          entry.type == PieceType::unused);
}

// The piece with ▁ written as a space, as the encoder's text has it; empty where a piece has a
// space of its own, which escaped text can't contain.
std::string Vocabulary::normalized(std::string_view piece) const {
  if (!escapes_spaces()) return std::string(piece);
  std::string text;
  if (piece.find(' ') != std::string_view::npos) return text;
  while (!piece.empty()) {
    if (piece.substr(0, kSpaceSymbolUtf8.size()) == kSpaceSymbolUtf8) {
      text.push_back(' ');
      piece.remove_prefix(kSpaceSymbolUtf8.size());
    } else {
      text.push_back(piece.front());
      piece.remove_prefix(1);
    }
  }
  return text;
}

std::uint32_t& Vocabulary::character_entry(CodePoint character) {
  std::uint32_t& page = pages_[character >> 8];
  if (page == 0) {
    page = static_cast<std::uint32_t>(characters_.size() >> 8);
    characters_.resize(characters_.size() + 256);
  }
  return characters_[page << 8 | (character & 0xFF)];
}

void Vocabulary::add_characters() {
  for (Id id = 0; id < size(); ++id) {
    if (!can_merge(id)) continue;
    const std::string& text = piece(id).text;
    const Character character = decode_valid_character(text.data());
    if (character.length == text.size()) {
      character_entry(character.code_point) = static_cast<Symbol>(id) + 1;
    }
  }
  if (escapes_spaces()) character_entry(' ') = symbol(kSpaceSymbol).symbol + 1;
  number_common_characters();
}

// The characters that occur most in pieces get numbers from 1 on, so that a plain table of their
// pairs fits into the nearest cache.
void Vocabulary::number_common_characters() {
  std::unordered_map<CodePoint, std::size_t> counts;
  for (const Piece& entry : model_.pieces) {
    const std::string text = normalized(entry.text);
    for (std::size_t at = 0; at < text.size();) {
      const Character character = decode_valid_character(text.data() + at);
      ++counts[character.code_point];
      at += character.length;
    }
  }
  std::vector<std::pair<std::size_t, CodePoint>> common;
  for (const auto& [character, count] : counts) common.emplace_back(count, character);
  std::sort(common.begin(), common.end(), std::greater<>());
  common.resize(std::min(common.size(), (std::size_t{1} << kCommonBits) - 1));
  for (std::size_t i = 0; i < common.size(); ++i) {
    const CodePoint character = common[i].second;
    const Symbol symbol = this->symbol(character).symbol;
    character_entry(character) = static_cast<std::uint32_t>(i + 1) << kSymbolBits | (symbol + 1);
  }
}

// Equal scores share a rank, so that the leftmost of two such merges goes first.
void Vocabulary::add_ranks() {
  for (const Piece& entry : model_.pieces) ranks_.push_back(sortable(entry.score));
  std::vector<std::uint32_t> distinct = ranks_;
  std::sort(distinct.begin(), distinct.end(), std::greater<>());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (std::uint32_t& score : ranks_) {
    const auto place =
        std::lower_bound(distinct.begin(), distinct.end(), score, std::greater<>());
    score = static_cast<std::uint32_t>(place - distinct.begin());
  }
  ranks_.push_back(no_merge());  // at least the number of ranks
  Symbol before = no_merge();
  for (Symbol id = 0; id < no_merge(); ++id) {
    if (!can_merge(static_cast<Id>(id)) || model_.pieces[id].text.size() < 2) continue;
    ids_are_ranks_ &= before == no_merge() || ranks_[before] < ranks_[id];
    before = id;
  }
}

void Vocabulary::add_merges() {
  common_merges_.assign(std::size_t{1} << 2 * kCommonBits, no_merge());
  for (Id id = 0; id < size(); ++id) {
    if (can_merge(id)) add_merges_of(id);
  }
  merges_.emplace(pairs_, no_merge());
  std::vector<PairTable::Pair>().swap(pairs_);
}

// Every way to cut the piece in two symbols is a merge. All of them are known beforehand because
// a symbol is a single character or the result of a merge, which is a piece.
void Vocabulary::add_merges_of(Id id) {
  const std::string text = normalized(piece(id).text);
  if (text.empty()) return;
  std::vector<std::size_t> starts;  // of the piece's characters
  std::vector<CodePoint> characters;
  for (std::size_t at = 0; at < text.size();) {
    const Character character = decode_valid_character(text.data() + at);
    starts.push_back(at);
    characters.push_back(character.code_point);
    at += character.length;
  }
  const auto result = static_cast<Symbol>(id);
  if (characters.size() == 2) {
    const auto left = symbol(characters[0]).common;
    const auto right = symbol(characters[1]).common;
    if (left != 0 && right != 0) common_merges_[left << kCommonBits | right] = result;
  }
  const std::string_view original = piece(id).text;
  std::size_t cut = 0;  // in the original, where ▁ has three bytes
  for (std::size_t i = 1; i < starts.size(); ++i) {
    cut += decode_valid_character(original.data() + cut).length;
    note_neighbours(characters[i - 1], characters[i]);
    const Symbol left = symbol_of(original.substr(0, cut), i == 1);
    const Symbol right = symbol_of(original.substr(cut), i + 1 == starts.size());
    if (left != kNoSymbol && right != kNoSymbol) pairs_.push_back({left, right, result});
  }
}

void Vocabulary::note_neighbours(CodePoint left, CodePoint right) {
  neighbours_.insert(static_cast<std::uint64_t>(left) << 32 | right, true);
  if (right == ' ' && left != ' ') cuts_at_spaces_ = false;
  neighbour_kinds_[kind_of(left)].set(kind_of(right));
  neighbour_kinds_[kind_of(right)].set(kind_of(left));
}

std::size_t Vocabulary::kind_of(CodePoint character) {
  if (character < 0x80) return character;
  if (character < 0xC0) return 128;
  return character >= 0x2000 && character < 0x3000 ? 129 : 130;
}

// Punctuation, digits and controls, less those that some piece has beside a letter, less those
// beside these, and so on.
void Vocabulary::find_separate() {
  std::bitset<kKinds> separate;
  for (std::size_t kind = 0; kind < kKinds - 1; ++kind) {
    const std::size_t lower = kind | 0x20;
    if (kind != ' ' && !(lower >= 'a' && lower <= 'z')) separate.set(kind);
  }
  for (bool changes = true; changes;) {
    changes = false;
    for (std::size_t kind = 0; kind < kKinds; ++kind) {
      std::bitset<kKinds> others = neighbour_kinds_[kind] & ~separate;
      others.reset(' ');
      if (separate[kind] && others.any()) {
        separate.reset(kind);
        changes = true;
      }
    }
  }
  for (std::size_t kind = 0; kind < 128; ++kind) {
    if (separate[kind]) separate_.insert(static_cast<unsigned char>(kind));
  }
  if (separate[128]) separate_.insert(LeadSet::kLatin);
  if (separate[129]) separate_.insert(LeadSet::kGeneral);
}

// kNoSymbol where the text is no symbol.
Symbol Vocabulary::symbol_of(std::string_view text, bool is_character) const {
  if (is_character) return symbol(decode_valid_character(text.data()).code_point).symbol;
  const Id id = find(text);
  return id >= 0 && can_merge(id) ? static_cast<Symbol>(id) : kNoSymbol;
}

}  // namespace vikhr
