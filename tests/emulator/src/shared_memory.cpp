#include "shared_memory.hpp"

#include "block.hpp"

namespace ptx {

void SharedMemory::reset(u32 bytes, int grain) {
  grain_ = grain;
  bytes_.assign(bytes + 16, 0xff);  // a NaN in every format
  shadow_ = std::vector<Cell>(bytes >> grain);
}

bool SharedMemory::allows(Warp& warp, u64 address, u32 bytes, u32 alignment, int lane,
                          const char* what) const {
  const auto complain = [&](const char* kind) {
    warp.find(kind, format("lane %d: %s of %u bytes at byte %lld of %u", lane, what, bytes,
                           static_cast<long long>(address - kSharedBase), size()));
    return false;
  };
  if (address % alignment != 0) return complain("misaligned access");
  const u64 offset = address - kSharedBase;
  return (offset <= size() && bytes <= size() - offset) || complain("shared memory out of bounds");
}

std::string SharedMemory::place(std::size_t cell, int lane) const {
  return format("lane %d, byte %zu of shared memory", lane, cell << grain_);
}

// What one of the warps that stored it has fenced since, as this warp has seen, or this warp itself
// after it.
bool SharedMemory::is_fenced(const Warp& warp, const Cell& cell) const {
  if (cell.proxy == Proxy::async || !cell.writers.any()) return true;
  bool fenced = false;
  cell.writers.each([&](int writer, Time time) {
    const std::vector<Time>& fences = warp.block->warps[std::size_t(writer)].fences;
    const auto after = std::lower_bound(fences.begin(), fences.end(), time);
    fenced |= (after != fences.end() && warp.has_seen(Agent(writer), *after)) ||
              warp.fenced[std::size_t(writer)] >= time;
  });
  return fenced;
}

void SharedMemory::note_read(Warp& warp, u32 address, u32 bytes, int lane, Proxy proxy) {
  const Agent agent = Agent(warp.id);
  each_cell(address, bytes, [&](std::size_t index) {
    Cell& cell = shadow_[index];
    if (cell.content != Content::data) {
      const char* kind = cell.content == Content::mbarrier ? "read of an mbarrier"
                         : cell.content == Content::nothing
                             ? "read of shared memory never written"
                             : "read of an asynchronous copy not waited for";
      warp.find(kind, place(index, lane));
    } else if (!cell.writers.sees_any(agent, warp.seen)) {
      const int writer = cell.writers.unseen_by(agent, warp.seen);
      warp.find("race in shared memory",
                place(index, lane) + ": read not ordered after the write by " + agent_name(writer));
    }
    if (proxy == Proxy::async && !is_fenced(warp, cell))
      warp.find("asynchronous read without fence.proxy.async", place(index, lane));
    cell.readers.add(agent, warp.block->now, warp.seen);
  });
}

void SharedMemory::claim(Warp& warp, std::size_t index, int lane, Agent agent, Content content,
                         Proxy proxy) {
  Cell& cell = shadow_[index];
  const Agent self = Agent(warp.id);
  if (cell.content == Content::mbarrier) warp.find("write over an mbarrier", place(index, lane));
  if (cell.content == Content::on_its_way)
    warp.find("write over an asynchronous copy not waited for", place(index, lane));
  else if (const int writer = cell.writers.unseen_by(self, warp.seen); writer >= 0)
    warp.find("race in shared memory",
              place(index, lane) + ": write not ordered after the write by " + agent_name(writer));
  if (proxy == Proxy::async && !is_fenced(warp, cell))
    warp.find("asynchronous write without fence.proxy.async", place(index, lane));
  if (const int reader = cell.readers.unseen_by(self, warp.seen); reader >= 0)
    warp.find("race in shared memory",
              place(index, lane) + ": write not ordered after the read by " + agent_name(reader));
  cell.set(agent, warp.block->now, content, proxy);
}

void SharedMemory::note_write(Warp& warp, u32 address, u32 bytes, int lane, const void* value) {
  check_products(warp, address, bytes);
  const Agent self = Agent(warp.id);
  const bool same = !std::memcmp(value, at(address), bytes);
  each_cell(address, bytes, [&](std::size_t index) {
    Cell& cell = shadow_[index];
    // A value that several warps hold is written by each of them: the same bytes do no harm.
    const bool again = same && cell.content == Content::data && cell.proxy == Proxy::generic &&
                       cell.writers.unseen_by(self, warp.seen) >= 0;
    if (again)
      cell.writers.add(self, warp.block->now, warp.seen);
    else
      claim(warp, index, lane, self, Content::data, Proxy::generic);
  });
}

void SharedMemory::begin_copy(Warp& warp, u32 address, u32 bytes, int lane, Agent agent,
                              Proxy proxy) {
  check_products(warp, address, bytes);
  each_cell(address, bytes, [&](std::size_t index) {
    claim(warp, index, lane, agent, Content::on_its_way, proxy);
  });
}

void SharedMemory::end_copy(u32 address, u32 bytes, Agent agent, Time now, Proxy proxy) {
  each_cell(address, bytes,
            [&](std::size_t index) { shadow_[index].set(agent, now, Content::data, proxy); });
}

// To make or forget an mbarrier is no store through the generic proxy: a bulk copy may follow
// without a fence, to what it was made for and, as Triton has it too, over where it was.
void SharedMemory::make_mbarrier(Warp& warp, u32 address) {
  check_products(warp, address, 8);
  each_cell(address, 8, [&](std::size_t index) {
    claim(warp, index, 0, Agent(warp.id), Content::mbarrier, Proxy::generic);
    shadow_[index].proxy = Proxy::async;
  });
}

void SharedMemory::forget_mbarrier(Warp& warp, u32 address) {
  each_cell(address, 8, [&](std::size_t index) {
    shadow_[index].set(Agent(warp.id), warp.block->now, Content::nothing, Proxy::async);
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
