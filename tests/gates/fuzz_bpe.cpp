// libFuzzer target: a model file from the front of the input, or merges of a byte-level vocabulary; texts and ids from
// its end. Whatever the bytes, the model is refused or works; what was encoded is the same however it is cut in
// documents and threads, and decodes.
//
// A model of random bytes hardly gets past the parser, so inputs that begin with a byte of 128 or more are spelt out
// instead: each piece is a type, a score and some characters of a small alphabet.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "bpe/bpe.hpp"
#include "bpe/byte_encoder.hpp"

namespace {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size)
      : bytes_(reinterpret_cast<const char*>(data), size) {}
  bool empty() const { return bytes_.empty(); }
  unsigned byte() {
    if (bytes_.empty()) return 0;
    const auto value = static_cast<unsigned char>(bytes_.front());
    bytes_.remove_prefix(1);
    return value;
  }
  std::string_view take(std::size_t size) {
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(taken.size());
    return taken;
  }
  std::size_t size() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
};

void add_field(std::string& message, unsigned number, std::string_view value) {
  message.push_back(static_cast<char>(number << 3 | 2));
  message.push_back(static_cast<char>(value.size()));
  message.append(value);
}

void add_number(std::string& message, unsigned number, unsigned value) {
  if (number >= 16) {
    message.push_back(static_cast<char>((number << 3 & 0x7F) | 0x80));
    message.push_back(static_cast<char>(number >> 4));
  } else {
    message.push_back(static_cast<char>(number << 3));
  }
  message.push_back(static_cast<char>(value));
}

// A model file of pieces that the input chooses.
std::string spell_model(Input& input) {
  static const std::string_view kCharacters[] = {"a",  "b", "c", ".",  ",",        "\xE2\x96\x81",
                                                 "\xD0\xB0", "\xD0\xB1", " ", "1", "\xC2\xAB", "\xE2\x80\x94"};
  const unsigned options = input.byte();
  std::string model;
  std::string unknown;
  add_field(unknown, 1, "<unk>");
  add_number(unknown, 3, 2);
  add_field(model, 1, unknown);
  if ((options & 1) != 0) {
    for (unsigned value = 0; value < 256; ++value) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", value);
      std::string piece;
      add_field(piece, 1, text);
      add_number(piece, 3, 6);
      add_field(model, 1, piece);
    }
  }
  for (unsigned count = input.byte() % 48; count > 0; --count) {
    const unsigned kind = input.byte();
    std::string text;
    for (unsigned length = kind % 6 + 1; length > 0; --length) text += kCharacters[input.byte() % 12];
    std::string piece;
    add_field(piece, 1, text);
    piece.push_back(2 << 3 | 5);  // the score, a float
    piece.append({0, 0, static_cast<char>(input.byte() & 0xF0), static_cast<char>(0xC0)});
    if (kind >= 224) add_number(piece, 3, kind % 2 == 0 ? 4 : 5);  // user-defined, unused
    add_field(model, 1, piece);
  }
  std::string trainer;
  add_number(trainer, 3, 2);
  add_number(trainer, 35, options & 1);
  add_field(model, 2, trainer);
  std::string normalizer;
  add_number(normalizer, 3, options >> 1 & 1);
  add_number(normalizer, 4, (options & 12) == 12 ? 1 : 0);
  add_number(normalizer, 5, (options & 48) == 48 ? 0 : 1);
  add_field(model, 3, normalizer);
  return model;
}

void require(bool condition) {
  if (!condition) std::abort();
}

// A byte-level vocabulary of merges and added tokens that the input chooses.
vikhr::ByteEncoder spell_byte_level(Input& input) {
  using namespace vikhr;
  static const std::string_view kUsual = "ab 1.\n\xD0\xB0\xD1";
  static const char* const kKinds[] = {"gpt2", "digits_gpt2", "llama3", "qwen2", "tekken"};
  const unsigned options = input.byte();
  std::vector<std::pair<std::string, Id>> tokens;
  for (Id byte = 0; byte < 256; ++byte) {
    if (options % 8 != 0 || byte % 16 != 5) tokens.emplace_back(std::string(1, static_cast<char>(byte)), byte);
  }
  std::vector<ByteVocabulary::Merge> merges;
  for (unsigned count = input.byte() % 64; count > 0; --count) {
    const auto draw = [&]() -> const std::pair<std::string, Id>& {
      const unsigned place = input.byte();
      if (place % 2 == 1) return tokens[tokens.size() - 1 - place / 2 % 64];
      return tokens[static_cast<unsigned char>(kUsual[place / 2 % kUsual.size()]) % tokens.size()];
    };
    const auto left = draw(), right = draw();
    if (left.first.size() + right.first.size() > 64) continue;
    const Id result = 256 + static_cast<Id>(tokens.size());
    merges.push_back({left.second, right.second, result});
    tokens.emplace_back(left.first + right.first, result);
  }
  std::vector<ByteEncoder::Added> added;
  if (options >= 192) added = {{"a1", 2000}, {"a1 b", 2001}, {"<b>", -1}};
  return ByteEncoder(tokens, merges, options / 8 % 2 == 0, split_kind(kKinds[options / 16 % 5]), added);
}

// Texts of the rest of the input, one after another, and where each ends.
struct Documents {
  std::string buffer;
  std::vector<std::int64_t> offsets{0};
  vikhr::Texts texts() const { return {buffer.data(), offsets.data(), offsets.size() - 1}; }
};

Documents read_documents(Input& input, unsigned first) {
  Documents read;
  const std::size_t repeats = first % 8 == 0 && input.size() < 256 ? 20 : 1;  // long enough for the heap
  for (unsigned documents = first % 5 + 1; documents > 0; --documents) {
    const std::string_view text = input.take(documents == 1 ? input.size() : input.byte());
    for (std::size_t i = 0; i < repeats; ++i) read.buffer.append(text);
    read.offsets.push_back(static_cast<std::int64_t>(read.buffer.size()));
  }
  return read;
}

// The ids of all documents, which each has alone, too, in any form.
template <typename Encoder>
vikhr::IdBuffer encode(const Encoder& encoder, const Documents& documents, unsigned threads) {
  using namespace vikhr;
  const Texts texts = documents.texts();
  const std::size_t count = texts.size();
  std::vector<std::int64_t> ends(count + 1);
  IdBuffer ids = encoder.encode(texts, InvalidUtf8::replace, threads, ends.data());
  require(ends[count] == static_cast<std::int64_t>(ids.size()));
  for (std::size_t i = 0; i < count; ++i) {
    const std::vector<Text> one{texts[i]};
    std::vector<std::int64_t> alone(2);
    const IdBuffer again = encoder.encode(Texts(one), InvalidUtf8::replace, 1, alone.data());
    require(alone[1] == ends[i + 1] - ends[i]);
    for (std::int64_t j = 0; j < alone[1]; ++j) {
      require(again.data()[j] == ids.data()[ends[i] + j]);
    }
  }
  for (const unsigned width : {1u, 2u, 4u}) {  // as code points, which needn't be any
    const std::vector<std::uint32_t> units(documents.buffer.begin(), documents.buffer.end());
    const std::vector<Text> one{{units.data(), units.size() * (4 / width), width}};
    std::vector<std::int64_t> alone(2);
    encoder.encode(Texts(one), InvalidUtf8::replace, 1, alone.data());
  }
  return ids;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vikhr;
  Input input(data, size);
  const unsigned first = input.byte();
  const unsigned threads = 1 + first / 64 % 2;
  try {
    if (first % 4 == 3) {
      const ByteEncoder encoder = spell_byte_level(input);
      encode(encoder, read_documents(input, first), threads);
      return 0;
    }
    const BpeEncoder encoder(first >= 128
                                 ? spell_model(input)
                                 : std::string(input.take((input.byte() << 8 | input.byte()) % (input.size() + 1))));
    const IdBuffer ids = encode(encoder, read_documents(input, first), threads);
    const std::vector<std::int64_t> wide(ids.data(), ids.data() + ids.size());
    std::string decoded;
    encoder.decode(wide.data(), wide.size(), decoded);
    const std::vector<std::int64_t> any{first, -1, static_cast<std::int64_t>(size)};
    encoder.decode(any.data(), any.size(), decoded);
  } catch (const ModelError&) {
  } catch (const TextError&) {
  } catch (const IdError&) {
  }
  return 0;
}
