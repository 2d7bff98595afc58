#include "global_memory.hpp"

#include "block.hpp"
#include "spaces.hpp"

namespace ptx {
namespace {

u8* at(u64 address) { return reinterpret_cast<u8*>(address & kHostBits); }

}  // namespace

GlobalMemory::GlobalMemory(int grain, const std::vector<Tensors>& all, const Kernel& kernel)
    : grain_(grain) {
  const auto add = [&](const Tensors& tensors, bool writable) {
    const auto& [names, base, bytes, elements] = tensors;
    const u64 pages = ((base + bytes - 1) >> kPageBits) - (base >> kPageBits) + 1;
    regions_.push_back({names, base, bytes, writable, elements, nullptr, {}});
    regions_.back().pages.resize(pages);
  };
  for (const Tensors& each : all) add(each, true);
  for (const auto& [name, bytes] : kernel.arrays)
    add({name, reinterpret_cast<u64>(bytes.data()), bytes.size(), {}}, false);
}

GlobalMemory::Region* GlobalMemory::find(Warp& warp, u64 address, u32 bytes) {
  const auto holds = [&](const Region& region) {
    return bytes <= region.bytes && address - region.base <= region.bytes - bytes;
  };
  if (warp.last_region < regions_.size() && holds(regions_[warp.last_region]))
    return &regions_[warp.last_region];
  for (std::size_t index = 0; index < regions_.size(); ++index) {
    if (!holds(regions_[index])) continue;
    warp.last_region = index;
    return &regions_[index];
  }
  return nullptr;
}

GlobalMemory::Region* GlobalMemory::find_or_complain(Warp& warp, u64 address, u32 bytes, int lane,
                                                     const char* what) {
  if (Region* region = find(warp, address, bytes)) {
    const u64 first = address - region->base;
    const std::string& elements = region->elements;
    if (elements.empty() || !std::memchr(&elements[first], 0, bytes)) return region;
    warp.find("global memory out of bounds",
              format("lane %d: %s of %u bytes at byte %llu of %s, between its elements", lane, what,
                     bytes, static_cast<unsigned long long>(first), region->names.c_str()));
    return nullptr;
  }
  std::string nearest = "there is no tensor at all";
  u64 least = ~u64{0};
  for (const Region& region : regions_) {
    const u64 distance = address < region.base ? region.base - address
                                               : address + bytes - region.base - region.bytes;
    if (distance >= least) continue;
    least = distance;
    nearest =
        format("byte %lld of %s, which has %llu", static_cast<long long>(address - region.base),
               region.names.c_str(), static_cast<unsigned long long>(region.bytes));
  }
  warp.find("global memory out of bounds",
            format("lane %d: %s of %u bytes at ", lane, what, bytes) + nearest);
  return nullptr;
}

u8* GlobalMemory::access(Warp& warp, u64 address, u32 bytes, int lane, const void* written) {
  const char* what = written ? "write" : "read";
  if (address & (bytes - 1)) {
    warp.find("misaligned access", format("lane %d: %s of %u bytes, %u past a multiple of them",
                                          lane, what, bytes, u32(address & (bytes - 1))));
    return nullptr;
  }
  Region* region = find_or_complain(warp, address, bytes, lane, what);
  if (!region) return nullptr;
  if (!written) {
    note_read(warp, *region, address, bytes, lane);
  } else if (!region->writable) {
    warp.find("write to constant memory", format("lane %d", lane));
    return nullptr;
  } else {
    note_write(warp, *region, address, bytes, lane, written);
  }
  return at(address);
}

u8* GlobalMemory::access_atomically(Warp& warp, u64 address, u32 bytes, int lane) {
  if (address & (bytes - 1)) {
    warp.find("misaligned access", format("lane %d: atomic of %u bytes", lane, bytes));
    return nullptr;
  }
  Region* region = find_or_complain(warp, address, bytes, lane, "atomic operation");
  if (!region) return nullptr;
  region->last_store = warp.current;
  // Ordered among themselves; whether what others do is ordered to them isn't looked at.
  each_cell(*region, address, bytes, [&](Cell& cell) { cell.atomic = true; });
  return at(address);
}

const u8* GlobalMemory::read_row(Warp& warp, u64 address, u32 bytes, int lane) {
  Region* region = find_or_complain(warp, address, bytes, lane, "copy");
  if (!region) return nullptr;
  note_read(warp, *region, address, bytes, lane);
  return at(address);
}

template <class F>
void GlobalMemory::each_cell(Region& region, u64 address, u32 bytes, F&& f) {
  const u64 offset = address - (region.base >> kPageBits << kPageBits);
  const int cells_bits = kPageBits - grain_;
  for (u64 cell = offset >> grain_, last = (offset + bytes - 1) >> grain_; cell <= last; ++cell) {
    std::unique_ptr<Cell[]>& page = region.pages[cell >> cells_bits];
    if (!page) page.reset(new Cell[std::size_t{1} << cells_bits]);
    f(page[cell & ((u64{1} << cells_bits) - 1)]);
  }
}

void GlobalMemory::note_read(Warp& warp, Region& region, u64 address, u32 bytes, int lane) {
  const int block = warp.block->index;
  const Agent self = Agent(warp.id);
  each_cell(region, address, bytes, [&](Cell& cell) {
    if (cell.writer_block >= 0 && cell.writer_block != block)
      warp.find("race in global memory between blocks",
                format("lane %d: read after a write by block %d", lane, cell.writer_block));
    else if (cell.writer_block >= 0 && !cell.writers.sees_any(self, warp.seen))
      warp.find("race in global memory",
                format("lane %d: read not ordered after the write by warp %d", lane,
                       cell.writers.unseen_by(self, warp.seen)));
    if (cell.reader_block != block) {
      cell.read_by_many |= cell.reader_block >= 0;
      cell.reader_block = block;
      cell.readers.clear();
    }
    cell.readers.add(self, warp.block->now, warp.seen);
  });
}

void GlobalMemory::note_write(Warp& warp, Region& region, u64 address, u32 bytes, int lane,
                              const void* value) {
  const int block = warp.block->index;
  const Agent self = Agent(warp.id);
  const bool same = !std::memcmp(value, at(address), bytes);
  region.last_store = warp.current;
  each_cell(region, address, bytes, [&](Cell& cell) {
    if (cell.writer_block >= 0 && cell.writer_block != block) {
      warp.find("race in global memory between blocks",
                format("lane %d: write after a write by block %d", lane, cell.writer_block));
    } else if (const int writer =
                   cell.writer_block < 0 ? -1 : cell.writers.unseen_by(self, warp.seen);
               writer >= 0) {
      if (same) return cell.writers.add(self, warp.block->now, warp.seen);  // as in shared memory
      warp.find("race in global memory",
                format("lane %d: write not ordered after the write by warp %d", lane, writer));
    }
    if (cell.read_by_many || (cell.reader_block >= 0 && cell.reader_block != block))
      warp.find("race in global memory between blocks",
                format("lane %d: write after a read by block %d", lane, cell.reader_block));
    else if (const int reader =
                 cell.reader_block < 0 ? -1 : cell.readers.unseen_by(self, warp.seen);
             reader >= 0)
      warp.find("race in global memory",
                format("lane %d: write not ordered after the read by warp %d", lane, reader));
    cell.writer_block = block;
    cell.writers.set(self, warp.block->now);
    cell.readers.clear();
  });
}

std::vector<GlobalMemory::Span> GlobalMemory::spans() const {
  std::vector<Span> spans;
  for (const Region& region : regions_) {
    if (!region.writable) continue;
    spans.push_back({region.base, region.bytes, region.last_store, {}});
    if (!region.last_store) continue;
    std::vector<u8>& coverage = spans.back().coverage;
    coverage.resize(region.bytes);
    const u64 first = region.base & ((u64{1} << kPageBits) - 1);
    for (u64 byte = 0; byte < region.bytes; ++byte) {
      const auto& page = region.pages[(first + byte) >> kPageBits];
      if (!page) continue;
      const Cell& cell = page[((first + byte) & ((u64{1} << kPageBits) - 1)) >> grain_];
      coverage[byte] = u8((cell.reader_block >= 0 ? kRead : 0) |
                          (cell.writer_block >= 0 || cell.atomic ? kWritten : 0));
    }
  }
  return spans;
}

}  // namespace ptx
