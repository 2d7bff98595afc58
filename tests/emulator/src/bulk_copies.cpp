// Hopper's engine for copies of boxes of tensors from global to shared memory, by tensor maps.
#include "block.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

// What the front end packs in place of a CUtensorMap, which is 128 bytes that only the driver
// reads.
struct TensorMap {
  u64 base;
  u32 rank, element_bytes, swizzle, fill_nan;
  u64 strides[5];  // in bytes
  u32 dimensions[5], box[5];
};
static_assert(sizeof(TensorMap) == 104);

void read(BulkCopy& copy) {
  for (const BulkCopy::Row& row : copy.rows)
    std::memcpy(copy.box.data() + row.offset, row.from, row.bytes);
  copy.rows.clear();
}

void finish(Block& block, BulkCopy copy) {
  read(copy);
  constexpr u32 kPiece = 16;
  for (u32 offset = 0; offset < copy.box.size(); offset += kPiece)
    std::memcpy(block.shared.at(swizzled(copy.to + offset, copy.swizzle)), &copy.box[offset],
                kPiece);
  block.shared.end_copy(copy.to, u32(copy.box.size()), copy.agent, block.now, Proxy::async);
  const auto found = block.hopper.mbarriers.find(copy.mbarrier);
  if (found == block.hopper.mbarriers.end()) return;
  Mbarrier& barrier = found->second;
  barrier.arrived[copy.agent] = block.now++;
  barrier.bytes -= s64(copy.box.size());
  barrier.complete_phases();
}

struct Copying {
  Address to, mbarrier;
  Register map;
  std::vector<Register> coordinates;

  void operator()(Warp& warp, Lanes lanes) const {
    Block& block = *warp.block;
    if (lanes & (lanes - 1)) warp.find("bulk copy by several lanes", format("lanes %08x", lanes));
    const int lane = first_lane(lanes);
    TensorMap tensor;
    const u64 place = warp.values<u64>(map)[lane];
    if (!warp.launch().kernel.has_parameter_bytes(place, sizeof tensor)) {
      warp.find("bulk copy by what is no tensor map", "only parameters are modelled as maps");
      return;
    }
    std::memcpy(&tensor, reinterpret_cast<const void*>(place), sizeof tensor);
    if (tensor.rank != coordinates.size()) {
      warp.find("bulk copy of another rank than its tensor map's",
                format("%zu, not %u", coordinates.size(), tensor.rank));
      return;
    }
    BulkCopy copy{};
    copy.warp = warp.id;
    copy.mbarrier = u32(mbarrier.of(warp, lane));
    copy.to = u32(to.of(warp, lane));
    copy.swizzle = int(tensor.swizzle);
    const Mbarrier* barrier = find_mbarrier(warp, copy.mbarrier, "copy");
    if (!barrier) return;
    copy.agent = barrier->agent;
    u32 bytes = tensor.element_bytes;
    for (u32 i = 0; i < tensor.rank; ++i) bytes *= tensor.box[i];
    if (!block.shared.allows(warp, copy.to, bytes, 128, lane, "bulk copy")) return;
    if (tensor.swizzle && tensor.box[0] * tensor.element_bytes != 16u << tensor.swizzle) {
      warp.find("not modelled", "a box narrower than what is swizzled");
      return;
    }
    copy.box = filling(tensor, bytes);
    find_rows(warp, lane, tensor, copy);
    if (!warp.launch().settings.late) read(copy);
    block.shared.begin_copy(warp, copy.to, bytes, lane, copy.agent, Proxy::async);
    block.hopper.copies.push_back(std::move(copy));
  }

 private:
  static std::vector<u8> filling(const TensorMap& tensor, u32 bytes) {
    std::vector<u8> box(bytes, 0);
    if (!tensor.fill_nan) return box;
    for (u32 i = 0; i + 1 < bytes; i += 2) {
      box[i] = 0xff;
      box[i + 1] = 0x7f;
    }
    return box;
  }
  // The rows of the box that lie in the tensor, each without what lies outside.
  void find_rows(Warp& warp, int lane, const TensorMap& tensor, BulkCopy& copy) const {
    const auto start = [&](u32 i) { return s64(s32(warp.values<u32>(coordinates[i])[lane])); };
    const s64 first = std::max<s64>(start(0), 0),
              end = std::min<s64>(start(0) + tensor.box[0], tensor.dimensions[0]);
    const u32 row_bytes = tensor.box[0] * tensor.element_bytes,
              rows = u32(copy.box.size()) / row_bytes;
    for (u32 row = 0; row < rows; ++row) {
      u64 from = tensor.base + u64(first) * tensor.element_bytes;
      bool inside = first < end;
      u32 rest = row;
      for (u32 i = 1; i < tensor.rank; ++i) {
        const s64 index = start(i) + s64(rest % tensor.box[i]);
        rest /= tensor.box[i];
        inside &= index >= 0 && index < s64(tensor.dimensions[i]);
        from += u64(index) * tensor.strides[i];
      }
      if (!inside) continue;
      const u32 count = u32(end - first) * tensor.element_bytes;
      if (const u8* place = warp.launch().memory.read_row(warp, from, count, lane))
        copy.rows.push_back(
            {row * row_bytes + u32(first - start(0)) * tensor.element_bytes, count, place});
    }
  }
};

}  // namespace

// Some of them, in any order, unless the seed is 0.
bool progress_copies(Block& block) {
  std::vector<BulkCopy>& copies = block.hopper.copies;
  bool any = false;
  for (std::size_t i = 0; i < copies.size();) {
    if (block.launch.settings.seed && block.random.below(3) != 0) {
      ++i;
      continue;
    }
    BulkCopy copy = std::move(copies[i]);
    copies.erase(copies.begin() + std::ptrdiff_t(i));
    finish(block, std::move(copy));
    any = true;
  }
  return any;
}

Action decode_bulk_copy(Decoder& decoder, const Statement& statement) {
  if (statement.name() != "cp" || !statement.has("bulk")) return {};
  static const char* const kCompletion = "mbarrier::complete_tx::bytes";
  statement.allow({"async", "bulk", "tensor", "1d", "2d", "3d", "4d", "5d", "shared::cta",
                   "shared::cluster", "global", kCompletion},
                  false);
  statement.expect_operands(3);
  const auto& operands = statement.operands;
  const bool to_shared = statement.words.size() > 6 &&
                         starts_with(statement.words[5], "shared::") &&
                         statement.words[6] == "global";
  if (!statement.has("tensor") || !to_shared || !statement.has(kCompletion) ||
      operands[1].list.size() != 2)
    refuse("bulk copies of tensors from global to shared memory are modelled");
  Copying copying{address_of(decoder, operands[0]),
                  address_of(decoder, operands[2]),
                  decoder.source(operands[1].list[0], 64),
                  {}};
  for (const Operand& coordinate : operands[1].list[1].elements())
    copying.coordinates.push_back(decoder.source(coordinate, 32));
  if (statement.words[4] != std::to_string(copying.coordinates.size()) + "d")
    refuse("another number of coordinates");
  return copying;
}

}  // namespace ptx
