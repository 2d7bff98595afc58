// What each instruction does, by family. A decoder of a family gives no action for what isn't of
// it, and throws std::invalid_argument at what is but isn't modelled.
#pragma once

#include "decoder.hpp"
#include "warp.hpp"

namespace ptx {

struct Block;

Action decode_control(Decoder& decoder, const Statement& statement);
Action decode_move(Decoder& decoder, const Statement& statement);
Action decode_comparison(Decoder& decoder, const Statement& statement);
Action decode_conversion(Decoder& decoder, const Statement& statement);
Action decode_bits(Decoder& decoder, const Statement& statement);
Action decode_arithmetic(Decoder& decoder, const Statement& statement);
Action decode_lanes(Decoder& decoder, const Statement& statement);
Action decode_memory(Decoder& decoder, const Statement& statement);
Action decode_atomic(Decoder& decoder, const Statement& statement);
Action decode_async_copy(Decoder& decoder, const Statement& statement);
Action decode_tensor_core(Decoder& decoder, const Statement& statement);
Action decode_mbarrier(Decoder& decoder, const Statement& statement);
Action decode_bulk_copy(Decoder& decoder, const Statement& statement);
Action decode_warpgroup(Decoder& decoder, const Statement& statement);

// Ends some of the bulk copies under way; whether any did.
bool progress_copies(Block& block);

[[noreturn]] void refuse(const std::string& what);

// D d = f(A a, B b, ...), lane by lane.
template <class D, class... A, class F>
inline void apply(F f, Lanes lanes, D* to, const A*... from) {
  each_lane(lanes, [=](int lane) { to[lane] = f(from[lane]...); });
}
// T, once for each of a pack.
template <class, class T>
using Each = T;
template <class D, class... A, class F, class... Registers>
Action lanewise(F f, Register to, Registers... from) {
  return [=](Warp& warp, Lanes lanes) {
    apply<D, A...>(f, lanes, warp.values<D>(to), warp.values<A>(from)...);
  };
}

// Reads and writes values of 16, 32 or 64 bits in registers at least as wide.
inline u64 read_lane(Warp& warp, Register reg, int bits, int lane) {
  return bits == 16   ? warp.values<u16>(reg)[lane]
         : bits == 32 ? warp.values<u32>(reg)[lane]
                      : warp.values<u64>(reg)[lane];
}
inline void write_lane(Warp& warp, Register reg, int bits, int lane, u64 value) {
  if (bits == 16) warp.values<u16>(reg)[lane] = u16(value);
  if (bits == 32) warp.values<u32>(reg)[lane] = u32(value);
  if (bits == 64) warp.values<u64>(reg)[lane] = value;
}

// What an address operand is: a base register and an offset.
struct Address {
  Register base;
  int bits;
  u64 offset;
  u64 of(Warp& warp, int lane) const { return read_lane(warp, base, bits, lane) + offset; }
};
Address address_of(Decoder& decoder, const Operand& operand);

}  // namespace ptx
