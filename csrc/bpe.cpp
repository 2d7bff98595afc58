#include "bpe.hpp"

#include <cstring>
#include <utility>

#include "threads.hpp"
#include "worker.hpp"

namespace vikhr {
namespace {

// Documents are handed to threads in blocks of about this many bytes.
constexpr std::size_t kBlockBytes = 1 << 18;

bool starts_with_space_symbol(std::string_view piece) {
  return piece.substr(0, kSpaceSymbolUtf8.size()) == kSpaceSymbolUtf8;
}

// One array of all blocks' ids. `ends`, where each document ends in its block, become places in it.
IdBuffer join(std::vector<IdBuffer>& outputs, const std::vector<std::size_t>& starts,
              unsigned threads, std::int64_t* ends) {
  std::vector<std::size_t> places{0};
  for (const IdBuffer& output : outputs) places.push_back(places.back() + output.size());
  IdBuffer joined(places.back());
  const auto copy = [&](std::size_t block) {
    IdBuffer& output = outputs[block];
    if (output.size() > 0) {
      std::memcpy(joined.data() + places[block], output.data(),
                  output.size() * sizeof(std::int32_t));
    }
    for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
      ends[i] += static_cast<std::int64_t>(places[block]);
    }
    output = IdBuffer();  // memory goes back as the joined pages are touched
  };
  run_blocks(outputs.size(), threads, [&]() { return copy; });
  return joined;
}

}  // namespace

// Borrows an idle worker, or makes one.
class BpeEncoder::Lease {
 public:
  explicit Lease(const BpeEncoder& encoder) : encoder_(encoder) {
    {
      const std::lock_guard<std::mutex> lock(encoder_.mutex_);
      if (!encoder_.idle_.empty()) {
        worker_ = std::move(encoder_.idle_.back());
        encoder_.idle_.pop_back();
      }
    }
    if (worker_ == nullptr) {
      worker_ = std::make_unique<Worker>(encoder_.vocabulary_, encoder_.unused_, encoder_.cache_);
    }
  }
  ~Lease() {
    const std::lock_guard<std::mutex> lock(encoder_.mutex_);
    try {
      encoder_.idle_.push_back(std::move(worker_));
    } catch (const std::bad_alloc&) {  // then it is not kept
    }
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Worker* operator->() { return worker_.get(); }

 private:
  const BpeEncoder& encoder_;
  std::unique_ptr<Worker> worker_;
};

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
  Merger merger(vocabulary_);
  std::vector<Symbol> symbols;
  for (Id id = 0; id < vocabulary_.size(); ++id) {
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type != PieceType::unused) continue;
    if (decode_valid_character(piece.text.data()).length == piece.text.size()) continue;
    const Merger::Pair last = merger.merge(piece.text, symbols);
    if (symbols.size() == 1) unused_.insert(static_cast<std::uint64_t>(id), last);
  }
}

BpeEncoder::~BpeEncoder() = default;

IdBuffer BpeEncoder::encode(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                            std::int64_t* offsets) const {
  threads = resolve_threads(threads);
  // One thread fills one buffer, which needs no joining.
  const std::vector<std::size_t> starts = threads == 1
                                              ? std::vector<std::size_t>{0, texts.size()}
                                              : cut_in_blocks(texts, kBlockBytes);
  const std::size_t blocks = starts.size() - 1;
  std::vector<IdBuffer> outputs(blocks);
  std::int64_t* ends = offsets + 1;
  run_blocks(blocks, threads, [&]() {
    return [&, lease = std::make_unique<Lease>(*this)](std::size_t block) {
      Lease& worker = *lease;
      worker->begin(outputs[block], ends);
      for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
        worker->encode(texts[i], i, policy);
      }
      worker->finish();
    };
  });
  offsets[0] = 0;
  if (blocks == 1) return std::move(outputs[0]);
  return join(outputs, starts, threads, ends);
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
