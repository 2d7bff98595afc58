#include "shared_memory.hpp"

#include "block.hpp"

namespace ptx {

void SharedMemory::reset(u32 bytes, int grain) {
  grain_ = grain;
  bytes_.assign(bytes + 16, 0xff);  // a NaN in every format
  shadow_.assign(bytes >> grain, Cell());
}

bool SharedMemory::allows(Warp& warp, u32 address, u32 bytes, u32 alignment, int lane,
                          const char* what) const {
  if (address % alignment != 0) {
    warp.find("misaligned access",
              format("lane %d: %s of %u bytes at shared address %u", lane, what, bytes, address));
    return false;
  }
  if (address < kSharedBase || u64(address) + bytes > u64(kSharedBase) + size()) {
    const int offset = int(address - kSharedBase);
    warp.find("shared memory out of bounds", format("lane %d: %s of %u bytes at byte %d of %u",
                                                    lane, what, bytes, offset, size()));
    return false;
  }
  return true;
}

std::string SharedMemory::place(std::size_t cell, int lane) const {
  return format("lane %d, byte %zu of shared memory", lane, cell << grain_);
}

// Written by a warp through the generic proxy, and neither that warp nor this one has fenced since.
bool SharedMemory::is_unfenced(Warp& warp, const Cell& cell) const {
  const bool by_warp = cell.proxy == Proxy::generic && cell.writer < kMaxWarps && cell.written > 0;
  return by_warp && warp.block->warps[cell.writer].fenced < cell.written &&
         warp.fenced < cell.written;
}

void SharedMemory::note_read(Warp& warp, u32 address, u32 bytes, int lane, Proxy proxy) {
  each_cell(address, bytes, [&](std::size_t index) {
    Cell& cell = shadow_[index];
    if (cell.content != Content::data) {
      const char* kind = cell.content == Content::mbarrier ? "read of an mbarrier"
                         : cell.content == Content::nothing
                             ? "read of shared memory never written"
                             : "read of an asynchronous copy not waited for";
      warp.find(kind, place(index, lane));
    } else if (!warp.has_seen(cell.writer, cell.written)) {
      warp.find(
          "race in shared memory",
          place(index, lane) + ": read not ordered after the write by " + agent_name(cell.writer));
    }
    if (proxy == Proxy::async && is_unfenced(warp, cell))
      warp.find("asynchronous read without fence.proxy.async",
                place(index, lane) + ", written by " + agent_name(cell.writer));
    if (cell.read <= warp.seen_of_all) cell.readers = 0;
    cell.readers |= 1u << warp.id;
    cell.read = warp.block->now;
  });
}

void SharedMemory::claim(Warp& warp, std::size_t index, int lane, u8 agent, Content content,
                         Proxy proxy) {
  Cell& cell = shadow_[index];
  if (cell.content == Content::mbarrier) warp.find("write over an mbarrier", place(index, lane));
  if (cell.content == Content::on_its_way)
    warp.find("write over an asynchronous copy not waited for", place(index, lane));
  else if (!warp.has_seen(cell.writer, cell.written))
    warp.find(
        "race in shared memory",
        place(index, lane) + ": write not ordered after the write by " + agent_name(cell.writer));
  if (proxy == Proxy::async && is_unfenced(warp, cell))
    warp.find("asynchronous write without fence.proxy.async",
              place(index, lane) + ", written by " + agent_name(cell.writer));
  for (u32 others = cell.readers & ~(1u << warp.id); others; others &= others - 1) {
    const u8 reader = u8(__builtin_ctz(others));
    if (warp.has_seen(reader, cell.read)) continue;
    warp.find("race in shared memory",
              place(index, lane) + ": write not ordered after the read by " + agent_name(reader));
    break;
  }
  cell = {warp.block->now, cell.read, 0, agent, content, proxy};
}

void SharedMemory::note_write(Warp& warp, u32 address, u32 bytes, int lane, const void* value) {
  check_products(warp, address, bytes);
  each_cell(address, bytes, [&](std::size_t index) {
    const Cell& cell = shadow_[index];
    // A value that several warps hold is written by each of them: the same bytes do no harm.
    const bool again = cell.content == Content::data && !warp.has_seen(cell.writer, cell.written);
    if (again && !std::memcmp(value, at(address), bytes)) return;
    claim(warp, index, lane, u8(warp.id), Content::data, Proxy::generic);
  });
}

void SharedMemory::begin_copy(Warp& warp, u32 address, u32 bytes, int lane, u8 agent, Proxy proxy) {
  check_products(warp, address, bytes);
  each_cell(address, bytes, [&](std::size_t index) {
    claim(warp, index, lane, agent, Content::on_its_way, proxy);
  });
}

void SharedMemory::end_copy(u32 address, u32 bytes, u8 agent, Time now, Proxy proxy) {
  each_cell(address, bytes,
            [&](std::size_t index) { shadow_[index] = {now, 0, 0, agent, Content::data, proxy}; });
}

// To make or forget an mbarrier is no store through the generic proxy: a bulk copy may follow
// without a fence, to what it was made for and, as Triton has it too, over where it was.
void SharedMemory::make_mbarrier(Warp& warp, u32 address) {
  check_products(warp, address, 8);
  each_cell(address, 8, [&](std::size_t index) {
    claim(warp, index, 0, u8(warp.id), Content::mbarrier, Proxy::generic);
    shadow_[index].proxy = Proxy::async;
  });
}

void SharedMemory::forget_mbarrier(Warp& warp, u32 address) {
  each_cell(address, 8, [&](std::size_t index) {
    shadow_[index] = {warp.block->now, 0, 0, u8(warp.id), Content::nothing, Proxy::async};
  });
}

void SharedMemory::check_products(Warp& warp, u32 address, u32 bytes) const {
  if (warp.block->products_under_way == 0) return;
  for (Warp& other : warp.block->warps) {
    const auto check = [&](const std::vector<WarpgroupProduct>& products) {
      for (const WarpgroupProduct& product : products)
        if (product.a.overlaps(address, address + bytes) ||
            product.b.overlaps(address, address + bytes))
          warp.find("write over what a wgmma not waited for reads",
                    format("byte %u of shared memory, %s's wgmma of ptx:%d", address - kSharedBase,
                           agent_name(u8(other.id)).c_str(), product.instruction->ptx_line));
    };
    check(other.products.open);
    for (const auto& group : other.products.committed) check(group);
  }
}

}  // namespace ptx
