// A block's shared memory and its shadow: who wrote and read what when, and what isn't there yet.
#pragma once

#include <vector>

#include "spaces.hpp"
#include "warp.hpp"

namespace ptx {

enum class Proxy : u8 { generic, async };

class SharedMemory {
 public:
  void reset(u32 bytes, int grain);
  u32 size() const { return u32(shadow_.size()) << grain_; }
  u8* at(u32 address) { return bytes_.data() + (address - kSharedBase); }

  // Whether the access is aligned and inside; a finding where it isn't.
  bool allows(Warp& warp, u64 address, u32 bytes, u32 alignment, int lane, const char* what) const;

  void note_read(Warp& warp, u32 address, u32 bytes, int lane, Proxy proxy = Proxy::generic);
  void note_write(Warp& warp, u32 address, u32 bytes, int lane, const void* value);
  // A copy by an agent is under way: nobody may read or write here until it ends.
  void begin_copy(Warp& warp, u32 address, u32 bytes, int lane, Agent agent, Proxy proxy);
  void end_copy(u32 address, u32 bytes, Agent agent, Time now, Proxy proxy);
  void make_mbarrier(Warp& warp, u32 address);
  void forget_mbarrier(Warp& warp, u32 address);

 private:
  enum class Content : u8 { nothing, data, on_its_way, mbarrier };
  struct Cell {
    Accesses writers, readers;  // since it was written
    Content content = Content::nothing;
    Proxy proxy = Proxy::generic;  // that it was written through

    void set(Agent writer, Time now, Content what, Proxy through) {
      writers.set(writer, now);
      readers.clear();
      content = what;
      proxy = through;
    }
  };

  void claim(Warp& warp, std::size_t cell, int lane, Agent agent, Content content, Proxy proxy);
  bool is_fenced(const Warp& warp, const Cell& cell) const;
  void check_products(Warp& warp, u32 address, u32 bytes) const;
  template <class F>
  void each_cell(u32 address, u32 bytes, F&& f) {
    const std::size_t last = (address - kSharedBase + bytes - 1) >> grain_;
    for (std::size_t cell = (address - kSharedBase) >> grain_; cell <= last; ++cell) f(cell);
  }
  std::string place(std::size_t cell, int lane) const;

  std::vector<u8> bytes_;
  std::vector<Cell> shadow_;
  int grain_ = 2;
};

}  // namespace ptx
