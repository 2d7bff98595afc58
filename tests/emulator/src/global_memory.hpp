// The tensors that a launch may touch, and their shadow: who of which block wrote and read what
// when.
#pragma once

#include <memory>
#include <vector>

#include "warp.hpp"

namespace ptx {

struct Tensors {  // one, or several that overlap
  std::string names;
  u64 base, bytes;       // the base: spaces.hpp
  std::string elements;  // a byte for every byte, 0 for what lies between elements; empty: nothing
};

class GlobalMemory {
 public:
  GlobalMemory(int grain, const std::vector<Tensors>& all, const Kernel& kernel);

  // Where to read or write, once the access is found to be aligned, inside a tensor and no race;
  // null where it can't be made. A write says what it writes, so that a value several warps hold is
  // no race.
  u8* access(Warp& warp, u64 address, u32 bytes, int lane, const void* written = nullptr);
  u8* access_atomically(Warp& warp, u64 address, u32 bytes, int lane);
  // What copies read: aligned or not.
  const u8* read_row(Warp& warp, u64 address, u32 bytes, int lane);

  enum Coverage : u8 { kRead = 1, kWritten = 2 };
  struct Span {
    u64 base, bytes;
    const Instruction* last_store;  // null where nothing was stored
    std::vector<u8> coverage;       // a byte each, of spans that were stored to
  };
  std::vector<Span> spans() const;

 private:
  static constexpr int kPageBits = 12;
  struct Cell {
    Accesses writers, readers;                 // of the block that accessed it last
    int writer_block = -1, reader_block = -1;  // -1: none
    bool read_by_many = false;                 // blocks
    bool atomic = false;                       // by an atomic operation
  };
  struct Region {
    std::string names;
    u64 base, bytes;
    bool writable;
    std::string elements;
    const Instruction* last_store = nullptr;
    std::vector<std::unique_ptr<Cell[]>> pages;
  };

  Region* find(Warp& warp, u64 address, u32 bytes);
  Region* find_or_complain(Warp& warp, u64 address, u32 bytes, int lane, const char* what);
  void note_read(Warp& warp, Region& region, u64 address, u32 bytes, int lane);
  void note_write(Warp& warp, Region& region, u64 address, u32 bytes, int lane, const void* value);
  template <class F>
  void each_cell(Region& region, u64 address, u32 bytes, F&& f);

  int grain_;
  std::vector<Region> regions_;
};

}  // namespace ptx
