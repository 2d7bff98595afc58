#include "bpe/model.hpp"

#include <cmath>
#include <cstring>

#include "text/scan.hpp"

namespace vikhr {
namespace {

enum class WireType : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

// Reads protobuf fields one after another. `base` is where `bytes` starts in the file, so that
// errors inside nested messages name the place in the file.
class FieldReader {
 public:
  FieldReader(std::string_view bytes, std::size_t base) : bytes_(bytes), base_(base) {}

  // Moves to the next field; false at the end of the message.
  bool next() {
    if (position_ == bytes_.size()) return false;
    start_ = position_;
    const std::uint64_t tag = read_varint();
    number_ = tag >> 3;
    if (number_ == 0 || tag > 0xFFFFFFFFu) fail("not a protobuf field");
    wire_type_ = static_cast<WireType>(tag & 7);
    switch (wire_type_) {
      case WireType::varint: integer_ = read_varint(); break;
      case WireType::fixed64: value_ = read_bytes(8); break;
      case WireType::fixed32: value_ = read_bytes(4); break;
      case WireType::bytes: {
        const std::uint64_t length = read_varint();
        value_ = read_bytes(length);
        break;
      }
      default: fail("a protobuf field of unknown kind");
    }
    return true;
  }

  std::uint64_t number() const { return number_; }

  std::uint64_t integer() const {
    expect(WireType::varint);
    return integer_;
  }
  bool boolean() const { return integer() != 0; }
  float real() const {
    expect(WireType::fixed32);
    float value;
    static_assert(sizeof value == 4, "protobuf floats are IEEE single precision");
    std::memcpy(&value, value_.data(), sizeof value);
    return value;
  }
  std::string_view bytes() const {
    expect(WireType::bytes);
    return value_;
  }
  std::string text() const {
    const std::string_view value = bytes();
    if (!is_valid_utf8(value)) fail("text that is not valid UTF-8");
    return std::string(value);
  }
  FieldReader message() const {
    const std::string_view value = bytes();
    return {value, base_ + static_cast<std::size_t>(value.data() - bytes_.data())};
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw ModelError(base_ + start_, what + "; this is no SentencePiece model, or a damaged one");
  }

 private:
  void expect(WireType wanted) const {
    if (wire_type_ != wanted) {
      fail("field " + std::to_string(number_) + " has the wrong kind of value");
    }
  }

  std::uint64_t read_varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (position_ == bytes_.size()) fail("the message ends inside a number");
      const auto byte = static_cast<unsigned char>(bytes_[position_++]);
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("a number longer than 64 bits");
  }

  std::string_view read_bytes(std::uint64_t length) {
    if (length > bytes_.size() - position_) fail("a field longer than its message");
    const std::string_view value = bytes_.substr(position_, static_cast<std::size_t>(length));
    position_ += value.size();
    return value;
  }

  std::string_view bytes_;
  std::size_t base_;
  std::size_t position_ = 0;
  std::size_t start_ = 0;
  std::uint64_t number_ = 0;
  WireType wire_type_ = WireType::varint;
  std::uint64_t integer_ = 0;
  std::string_view value_;
};

// Field numbers below are those of sentencepiece_model.proto; other fields don't matter here.

Piece parse_piece(FieldReader fields) {
  Piece piece;
  while (fields.next()) {
    switch (fields.number()) {
      case 1: piece.text = fields.text(); break;
      case 2:
        piece.score = fields.real();
        if (!std::isfinite(piece.score)) fields.fail("a score that is no finite number");
        break;
      case 3:
        if (fields.integer() < 1 || fields.integer() > 6) fields.fail("an unknown type of piece");
        piece.type = static_cast<PieceType>(fields.integer());
        break;
      default: break;
    }
  }
  return piece;
}

void parse_trainer_spec(FieldReader fields, Model& model) {
  while (fields.next()) {
    switch (fields.number()) {
      case 3:
        if (fields.integer() < 1 || fields.integer() > 4) fields.fail("an unknown type of model");
        model.type = static_cast<ModelType>(fields.integer());
        break;
      case 24: model.treat_whitespace_as_suffix = fields.boolean(); break;
      case 35: model.byte_fallback = fields.boolean(); break;
      case 44: model.unknown_surface = fields.text(); break;
      case 45: model.unknown_piece = fields.text(); break;
      case 46: model.begin_piece = fields.text(); break;
      case 47: model.end_piece = fields.text(); break;
      case 48: model.padding_piece = fields.text(); break;
      default: break;
    }
  }
}

void parse_normalizer_spec(FieldReader fields, Model& model) {
  while (fields.next()) {
    switch (fields.number()) {
      case 1: model.normalizer_name = fields.text(); break;
      case 2: model.has_normalizer_rules = !fields.bytes().empty(); break;
      case 3: model.add_dummy_prefix = fields.boolean(); break;
      case 4: model.remove_extra_whitespaces = fields.boolean(); break;
      case 5: model.escape_whitespaces = fields.boolean(); break;
      default: break;
    }
  }
}

void parse_denormalizer_spec(FieldReader fields, Model& model) {
  while (fields.next()) {
    if (fields.number() == 2) model.has_denormalizer_rules = !fields.bytes().empty();
  }
}

}  // namespace

Model parse_model(std::string_view file) {
  Model model;
  FieldReader fields(file, 0);
  while (fields.next()) {
    switch (fields.number()) {
      case 1: model.pieces.push_back(parse_piece(fields.message())); break;
      case 2: parse_trainer_spec(fields.message(), model); break;
      case 3: parse_normalizer_spec(fields.message(), model); break;
      case 5: parse_denormalizer_spec(fields.message(), model); break;
      default: break;
    }
  }
  if (model.pieces.empty()) throw ModelError(0, "no pieces; this is no SentencePiece model");
  return model;
}

}  // namespace vikhr
