// cp.async: copies from global to shared memory that are there once they are waited for.
#include "block.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

void finish(Warp& warp, AsyncCopy& copy) {
  SharedMemory& shared = warp.block->shared;
  if (warp.launch().settings.late && copy.taken) std::memcpy(copy.data, copy.from, copy.taken);
  std::memcpy(shared.at(copy.to), copy.data, copy.bytes);
  shared.end_copy(copy.to, copy.bytes, u8(warp.id), warp.block->now, Proxy::generic);
}

struct Copying {
  Address to, from;
  u32 bytes;
  Register taken;  // bytes that are read, the rest is zeros; may be missing

  void operator()(Warp& warp, Lanes lanes) const {
    SharedMemory& shared = warp.block->shared;
    for (; lanes; lanes &= lanes - 1) {
      const int lane = first_lane(lanes);
      const u32 address = u32(to.of(warp, lane));
      const u32 count =
          taken == kNoRegister ? bytes : std::min(bytes, warp.values<u32>(taken)[lane]);
      if (!shared.allows(warp, address, bytes, bytes, lane, "asynchronous copy")) continue;
      AsyncCopy copy{address, nullptr, u8(bytes), u8(count), {}};
      const u64 source = from.of(warp, lane);
      if (source % bytes != 0) {
        warp.find("misaligned access",
                  format("lane %d: asynchronous copy of %u bytes", lane, bytes));
        continue;
      }
      if (count) {
        copy.from = warp.launch().memory.read_row(warp, source, count, lane);
        if (copy.from)
          std::memcpy(copy.data, copy.from, count);
        else
          copy.taken = 0;
      }
      shared.begin_copy(warp, address, bytes, lane, u8(warp.id), Proxy::generic);
      warp.copies.open.push_back(copy);
    }
  }
};

}  // namespace

Action decode_async_copy(Decoder& decoder, const Statement& statement) {
  if (statement.name() != "cp" || !statement.has("async")) return {};
  const auto& operands = statement.operands;
  if (statement.has("commit_group")) return [](Warp& warp, Lanes) { warp.copies.commit(); };
  if (statement.has("wait_group") || statement.has("wait_all")) {
    statement.allow({"async", "wait_group", "wait_all"}, false);
    const bool all = statement.has("wait_all");
    const std::size_t left = all ? 0 : std::size_t(operands.at(0).value);
    return [=](Warp& warp, Lanes lanes) {
      require_whole(warp, lanes, "cp.async.wait");
      if (all) warp.copies.commit();
      warp.copies.wait(left, [&](AsyncCopy& copy) { finish(warp, copy); });
    };
  }
  statement.allow({"async", "ca", "cg", "shared", "shared::cta", "global", "L2::128B", "L2::256B"},
                  false);
  if (operands.size() < 3 || operands.size() > 4 || !operands[2].is(Operand::Kind::number))
    refuse("this copy isn't modelled");
  const u32 bytes = u32(operands[2].value);
  if (statement.has("cg") && bytes != 16) refuse("cp.async.cg copies 16 bytes");
  if (bytes != 4 && bytes != 8 && bytes != 16)
    refuse(format("copies of %u bytes don't exist", bytes));
  const Register taken = operands.size() > 3 ? decoder.source(operands[3], 32) : kNoRegister;
  return Copying{address_of(decoder, operands[0]), address_of(decoder, operands[1]), bytes, taken};
}

}  // namespace ptx
