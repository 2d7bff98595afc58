// ld, st and atomic operations.
#include "block.hpp"
#include "instructions.hpp"
#include "spaces.hpp"

namespace ptx {
namespace {

constexpr std::size_t kMostBytes = 32;  // of a load or store

enum class Space : u8 { generic, global, shared, local, parameter };

Space space_of(const Statement& statement) {
  if (statement.has("global") || statement.has("const")) return Space::global;
  if (statement.has("shared") || statement.has("shared::cta")) return Space::shared;
  if (statement.has("local")) return Space::local;
  return statement.has("param") ? Space::parameter : Space::generic;
}

std::pair<Space, u64> resolved(const Kernel& kernel, Space space, u64 address) {
  if (space != Space::generic) return {space, address};
  if (kernel.has_parameter_bytes(address, 1)) return {Space::parameter, address};
  if (address - kLocalWindow < kWindowBytes) return {Space::local, address - kLocalWindow};
  if (address - kSharedWindow < kWindowBytes) return {Space::shared, address - kSharedWindow};
  return {Space::global, address};
}

u8* local_memory(Warp& warp, u64 address, u32 bytes, int lane) {
  const u32 size = warp.launch().kernel.local_bytes;
  const u64 offset = address - kLocalBase;
  if (bytes > size || offset > size - bytes || offset % bytes != 0) {
    warp.find("local memory out of bounds", format("lane %d: %u bytes at byte %lld of %u", lane,
                                                   bytes, static_cast<long long>(offset), size));
    return nullptr;
  }
  if (warp.local.empty()) warp.local.resize(std::size_t(size) * kWarpSize);
  return warp.local.data() + std::size_t(size) * std::size_t(lane) + offset;
}

// Where it is, if the access is allowed; else null. `written`: what is about to be written, null
// for a read.
u8* place_of(Warp& warp, Space space, u64 address, u32 bytes, int lane, const u8* written) {
  std::tie(space, address) = resolved(warp.launch().kernel, space, address);
  switch (space) {
    case Space::parameter:
      if (!written && warp.launch().kernel.has_parameter_bytes(address, bytes))
        return reinterpret_cast<u8*>(address);
      warp.find("parameters out of bounds", format("lane %d: %u bytes", lane, bytes));
      return nullptr;
    case Space::local: return local_memory(warp, address, bytes, lane);
    case Space::shared: {
      SharedMemory& shared = warp.block->shared;
      if (!shared.allows(warp, address, bytes, bytes, lane, written ? "write" : "read"))
        return nullptr;
      if (written)
        shared.note_write(warp, u32(address), bytes, lane, written);
      else
        shared.note_read(warp, u32(address), bytes, lane);
      return shared.at(u32(address));
    }
    default: return warp.launch().memory.access(warp, address, bytes, lane, written);
  }
}

struct Element {
  Register reg;
  int bits;  // of the register
};

struct Access {
  Space space;
  Address address;
  int bytes;  // of an element
  bool is_signed;
  std::vector<Element> elements;

  void load(Warp& warp, Lanes lanes) const {
    const u32 all = u32(bytes) * u32(elements.size());
    for (; lanes; lanes &= lanes - 1) {
      const int lane = first_lane(lanes);
      const u8* from = place_of(warp, space, address.of(warp, lane), all, lane, nullptr);
      for (const Element& element : elements) {
        u64 value = 0;
        if (from) {
          std::memcpy(&value, from, std::size_t(bytes));
          from += bytes;
          if (is_signed) value = u64(s64(value << (64 - 8 * bytes)) >> (64 - 8 * bytes));
        }
        write_lane(warp, element.reg, element.bits, lane, value);
      }
    }
  }
  void store(Warp& warp, Lanes lanes) const {
    const u32 all = u32(bytes) * u32(elements.size());
    for (; lanes; lanes &= lanes - 1) {
      const int lane = first_lane(lanes);
      u8 values[kMostBytes];
      u8* end = values;
      for (const Element& element : elements) {
        const u64 value = read_lane(warp, element.reg, element.bits, lane);
        std::memcpy(end, &value, std::size_t(bytes));
        end += bytes;
      }
      if (u8* to = place_of(warp, space, address.of(warp, lane), all, lane, values))
        std::memcpy(to, values, all);
    }
  }
};

// What is watched together must be no larger than the smallest store.
void watch_finely(Kernel& kernel, Space space, int bytes) {
  const int grain = std::min(bytes, 4) / 2;  // log2 of 1, 2, 4
  if (space == Space::shared || space == Space::generic)
    kernel.shared_grain = std::min(kernel.shared_grain, grain);
  if (space == Space::global || space == Space::generic)
    kernel.global_grain = std::min(kernel.global_grain, grain);
}

// ---- atomic operations, one lane after the other ----

template <class T, class F>
Action atomically(Space space, Address address, Register to, Register value, F change) {
  return [=](Warp& warp, Lanes lanes) {
    for (; lanes; lanes &= lanes - 1) {
      const int lane = first_lane(lanes);
      const auto [where, resolved_address] =
          resolved(warp.launch().kernel, space, address.of(warp, lane));
      if (where != Space::global) {
        warp.find("not modelled", "an atomic operation outside of global memory");
        return;
      }
      u8* place = warp.launch().memory.access_atomically(warp, resolved_address, sizeof(T), lane);
      if (!place) continue;
      T old;
      std::memcpy(&old, place, sizeof old);
      const T now = change(old, warp.values<T>(value)[lane]);
      std::memcpy(place, &now, sizeof now);
      if (to != kNoRegister) warp.values<T>(to)[lane] = old;
    }
  };
}

template <class T>
Action atomic_of(const std::string& how, Space space, Address address, Register to,
                 Register value) {
  const auto by = [&](auto change) { return atomically<T>(space, address, to, value, change); };
  if (how == "add") return by([](T x, T y) { return T(x + y); });
  if (how == "exch") return by([](T, T y) { return y; });
  if constexpr (std::is_integral_v<T>) {
    if (how == "min") return by([](T x, T y) { return std::min(x, y); });
    if (how == "max") return by([](T x, T y) { return std::max(x, y); });
    if (how == "and") return by([](T x, T y) { return T(x & y); });
    if (how == "or") return by([](T x, T y) { return T(x | y); });
    if (how == "xor") return by([](T x, T y) { return T(x ^ y); });
  }
  return {};
}

}  // namespace

Action decode_memory(Decoder& decoder, const Statement& statement) {
  const bool loads = statement.name() == "ld";
  if ((!loads && statement.name() != "st") || statement.has("async")) return {};
  statement.allow({"global",
                   "shared",
                   "shared::cta",
                   "local",
                   "param",
                   "const",
                   "v2",
                   "v4",
                   "v8",
                   "nc",
                   "volatile",
                   "relaxed",
                   "acquire",
                   "release",
                   "weak",
                   "cta",
                   "gpu",
                   "sys",
                   "L1::evict_first",
                   "L1::evict_last",
                   "L1::evict_normal",
                   "L1::evict_unchanged",
                   "L1::no_allocate",
                   "L2::evict_first",
                   "L2::evict_last",
                   "L2::evict_normal",
                   "L2::cache_hint",
                   "L2::64B",
                   "L2::128B",
                   "L2::256B",
                   "ca",
                   "cg",
                   "cs",
                   "lu",
                   "cv",
                   "wb",
                   "wt"});
  const auto& operands = statement.operands;
  if (operands.size() != (statement.has("L2::cache_hint") ? 3u : 2u))
    refuse("the wrong number of operands");
  const int bits = value_bits(statement.type(), 8);
  const Operand &address = operands[loads ? 1 : 0], &value = operands[loads ? 0 : 1];
  Access access{
      space_of(statement), address_of(decoder, address), bits / 8, statement.type()[0] == 's', {}};
  for (const Operand& element : value.elements()) {
    if (!loads) {
      const auto [reg, width] = decoder.wide_source(element, bits);
      access.elements.push_back({reg, width});
      continue;
    }
    const int width = element.is(Operand::Kind::reg) ? element.bits : std::max(16, bits);
    if (width < bits) refuse("the destination is too narrow");
    access.elements.push_back({decoder.destination(element, width), width});
  }
  const std::string vector = statement.one_of({"v2", "v4", "v8"});
  if (access.elements.size() != (vector.empty() ? 1u : std::size_t(vector[1] - '0')))
    refuse("a vector of another length");
  if (u64(access.bytes) * access.elements.size() > kMostBytes) refuse("more than 32 bytes at once");
  if (loads) return [access](Warp& warp, Lanes lanes) { access.load(warp, lanes); };
  watch_finely(decoder.kernel(), access.space, access.bytes);
  return [access](Warp& warp, Lanes lanes) { access.store(warp, lanes); };
}

Action decode_atomic(Decoder& decoder, const Statement& statement) {
  const bool returns = statement.name() == "atom";
  if ((!returns && statement.name() != "red") || statement.has("async")) return {};
  statement.allow({"global", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "add",
                   "exch", "min", "max", "and", "or", "xor"});
  statement.expect_operands(returns ? 3 : 2);
  const std::string& type = statement.type();
  const int bits = value_bits(type, 32);
  const auto& operands = statement.operands;
  const Address address = address_of(decoder, operands[returns ? 1 : 0]);
  const Register value = decoder.source(operands.back(), bits);
  const Register to = returns ? decoder.destination(operands[0], bits) : kNoRegister;
  const std::string how = statement.one_of({"add", "exch", "min", "max", "and", "or", "xor"});
  const Space space = space_of(statement);
  if (type == "f32") return atomic_of<float>(how, space, address, to, value);
  if (type == "f64") return atomic_of<double>(how, space, address, to, value);
  if (type == "s32") return atomic_of<s32>(how, space, address, to, value);
  if (type == "u32" || type == "b32") return atomic_of<u32>(how, space, address, to, value);
  if (type == "s64") return atomic_of<s64>(how, space, address, to, value);
  if (type == "u64" || type == "b64") return atomic_of<u64>(how, space, address, to, value);
  return {};
}

}  // namespace ptx
