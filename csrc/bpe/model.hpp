// The parts of a SentencePiece `.model` file (a protobuf message, ModelProto) that encoding needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace vikhr {

enum class PieceType : std::uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6,
};

struct Piece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::normal;
};

enum class ModelType : std::uint8_t { unigram = 1, bpe = 2, word = 3, character = 4 };

// Field defaults are those of sentencepiece_model.proto.
struct Model {
  std::vector<Piece> pieces;

  ModelType type = ModelType::unigram;
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  std::string unknown_piece = "<unk>";
  std::string begin_piece = "<s>";
  std::string end_piece = "</s>";
  std::string padding_piece = "<pad>";
  std::string unknown_surface = " \xE2\x81\x87 ";

  std::string normalizer_name;
  bool has_normalizer_rules = false;    // a compiled character map: anything but identity
  bool has_denormalizer_rules = false;  // the same for decoding
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// A model file that cannot be read or used. The message starts with "byte N: " where the fault
// has a place in the file.
class ModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ModelError(std::size_t offset, const std::string& what)
      : std::runtime_error("byte " + std::to_string(offset) + ": " + what) {}
};

// Parses any bytes: ModelError on everything that is no well-formed model.
Model parse_model(std::string_view file);

}  // namespace vikhr
