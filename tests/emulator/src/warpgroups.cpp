// wgmma: asynchronous products of four warps, from shared memory or registers, into registers.
#include "block.hpp"
#include "instructions.hpp"
#include "tensor_cores.hpp"

namespace ptx {
namespace {

constexpr int kRows = 16;  // of the 64, a warp's

void hold_registers(Warp& warp, const WarpgroupProduct& product) {
  warp.sums.insert(product.sums->begin(), product.sums->end());
  warp.factors.insert(product.factors->begin(), product.factors->end());
}

// Where the elements of a matrix in shared memory are. "Major" is the dimension whose elements lie
// together: the depth, or the other one.
struct MatrixDescriptor {
  u32 start, leading, stride;  // bytes
  int swizzle;
  bool depth_major;
  int element_bytes;

  MatrixDescriptor(u64 bits, bool depth_major_, int element_bytes_)
      : start(u32(bits & 0x3fff) << 4),
        leading(u32(bits >> 16 & 0x3fff) << 4),
        stride(u32(bits >> 32 & 0x3fff) << 4),
        swizzle(int(4 - (bits >> 62)) & 3),
        depth_major(depth_major_),
        element_bytes(element_bytes_) {}

  u32 address(u32 row, u32 k) const {
    const u32 depth_byte = k * u32(element_bytes);
    if (!swizzle) {  // blocks of 8 times 16 bytes
      if (depth_major)
        return start + row % 8 * 16 + row / 8 * stride + depth_byte % 16 +
               depth_byte / 16 * leading;
      return start + row % 8 * 2 + row / 8 * stride + k % 8 * 16 + k / 8 * leading;
    }
    const u32 width = 16u << swizzle;  // bytes
    if (depth_major)
      return swizzled(start + row % 8 * width + row / 8 * stride + depth_byte, swizzle);
    return swizzled(start + row % (width / 2) * 2 + row / (width / 2) * leading + k % 8 * width +
                        k / 8 * stride,
                    swizzle);
  }
};

struct Wgmma {
  Elements elements;
  int columns, depth;
  std::vector<Register> d, a;  // a: empty where it is in shared memory
  Register a_descriptor, b_descriptor;
  bool a_depth_major, b_depth_major;
  float a_sign, b_sign;
  Register keeps_sums;  // a predicate

  void issue(Warp& warp, Lanes lanes) const {
    if (lanes != kAllLanes) {
      warp.find("wgmma by part of a warp", format("lanes %08x", lanes));
      return;
    }
    const Lanes keeps = warp.predicate(keeps_sums);
    if (keeps != 0 && keeps != kAllLanes)
      warp.find("wgmma with different operands in a warp", "scale-d");
    check_registers(warp);
    const u64 a_bits = a.empty() ? uniform(warp, a_descriptor) : 0,
              b_bits = uniform(warp, b_descriptor);
    WarpgroupProduct product{warp.current, {}, {}, {}, &d, &a};
    note_operands(warp, a_bits, b_bits, product);
    const bool late = warp.launch().settings.late;
    if (!late) multiply_now(warp, a_bits, b_bits, keeps != 0);
    product.finish = [=](Warp& then, WarpgroupProduct& self) {
      note_operands(then, a_bits, b_bits, self);  // it may have read up to now
      if (late) multiply_now(then, a_bits, b_bits, keeps != 0);
    };
    hold_registers(warp, product);
    warp.products.open.push_back(std::move(product));
    ++warp.block->products_under_way;
  }

 private:
  void check_registers(Warp& warp) const {
    if (!warp.products_fenced)
      warp.find("wgmma without wgmma.fence", "none since the start or the last wait");
    for (const Register reg : a)
      if (warp.sums.count(reg))
        return warp.find("use of registers of a wgmma not waited for", "a factor is a sum");
  }
  u64 uniform(Warp& warp, Register reg) const {
    const u64* values = warp.values<u64>(reg);
    constexpr u64 kBaseOffset = u64{7} << 49;
    if (values[0] & kBaseOffset)
      warp.find("not modelled", "the base offset of a matrix descriptor");
    if (!std::all_of(values, values + kWarpSize, [&](u64 value) { return value == values[0]; }))
      warp.find("wgmma with different operands in a warp", "a matrix descriptor");
    return values[0];
  }
  MatrixDescriptor a_matrix(u64 bits) const { return {bits, a_depth_major, bytes_of(elements)}; }
  MatrixDescriptor b_matrix(u64 bits) const { return {bits, b_depth_major, bytes_of(elements)}; }

  // f(row, k, value) for rows from `first` on; false where some lie outside of shared memory. A
  // read is noted, with the bytes it covers, where `range` is given.
  template <class F>
  bool each_element(Warp& warp, const MatrixDescriptor& matrix, int first, int rows,
                    ByteRange* range, F&& f) const {
    SharedMemory& shared = warp.block->shared;
    const int together = 16 / bytes_of(elements);
    const int outer = matrix.depth_major ? rows : depth, inner = matrix.depth_major ? depth : rows;
    for (int x = 0; x < outer; ++x)
      for (int y = 0; y < inner; y += together) {
        const int row = matrix.depth_major ? x : y, k = matrix.depth_major ? y : x;
        const u32 address = matrix.address(u32(first + row), u32(k));
        if (!shared.allows(warp, address, 16, 16, 0, "wgmma")) return false;
        if (range) {
          range->cover(address, address + 16);
          shared.note_read(warp, address, 16, 0, Proxy::async);
        }
        u32 words[4];
        std::memcpy(words, shared.at(address), sizeof words);
        for (int i = 0; i < together; ++i) {
          const int each = 4 / bytes_of(elements);
          f(row + (matrix.depth_major ? 0 : i), k + (matrix.depth_major ? i : 0),
            element_of(elements, words[i / each], i % each));
        }
      }
    return true;
  }
  int first_row(const Warp& warp) const { return warp.id % 4 * kRows; }
  void note_operands(Warp& warp, u64 a_bits, u64 b_bits, WarpgroupProduct& product) const {
    const auto nothing = [](int, int, float) {};
    if (a.empty())
      each_element(warp, a_matrix(a_bits), first_row(warp), kRows, &product.a, nothing);
    each_element(warp, b_matrix(b_bits), 0, columns, &product.b, nothing);
  }
  void multiply_now(Warp& warp, u64 a_bits, u64 b_bits, bool keeps) const {
    std::vector<float> left(std::size_t(kRows * depth)), right(std::size_t(depth * columns)),
        sums(std::size_t(kRows * columns));
    const auto to_left = [&](int row, int k, float value) {
      left[std::size_t(row * depth + k)] = a_sign * value;
    };
    const auto to_right = [&](int column, int k, float value) {
      right[std::size_t(k * columns + column)] = b_sign * value;
    };
    if (!a.empty())
      read_registers(warp, to_left);
    else if (!each_element(warp, a_matrix(a_bits), first_row(warp), kRows, nullptr, to_left))
      return;
    if (!each_element(warp, b_matrix(b_bits), 0, columns, nullptr, to_right)) return;
    if (keeps)
      each_sum(warp, [&](float value, std::size_t index) {
        sums[index] = value;
        return value;
      });
    multiply(left.data(), right.data(), sums.data(), kRows, columns, depth,
             warp.launch().settings.rough);
    each_sum(warp, [&](float, std::size_t index) { return sums[index]; });
  }
  template <class F>
  void read_registers(Warp& warp, F&& f) const {
    const int each = 4 / bytes_of(elements);
    for (int lane = 0; lane < kWarpSize; ++lane)
      for (std::size_t i = 0; i < a.size(); ++i)
        for (int j = 0; j < each; ++j)
          f(lane / 4 + int(i % 2) * 8, lane % 4 * each + j + int(i / 2) * 4 * each,
            element_of(elements, warp.values<u32>(a[i])[lane], j));
  }
  // Every accumulator becomes f(itself, its index in [rows][columns]).
  template <class F>
  void each_sum(Warp& warp, F&& f) const {
    for (std::size_t i = 0; i < d.size(); ++i) {
      float* values = warp.values<float>(d[i]);
      for (int lane = 0; lane < kWarpSize; ++lane) {
        const int row = lane / 4 + int(i / 2 % 2) * 8,
                  column = int(i / 4) * 8 + lane % 4 * 2 + int(i % 2);
        values[lane] = f(values[lane], std::size_t(row * columns + column));
      }
    }
  }
};

float sign(const Operand& operand) {
  const s64 value = s64(operand.value);
  if (!operand.is(Operand::Kind::number) || (value != 1 && value != -1))
    refuse("a sign is 1 or -1");
  return float(value);
}

// wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {d}, a, b, scale-d, sign-a, sign-b[,
// transposed-a, transposed-b]
Action decode_product(Decoder& decoder, const Statement& statement) {
  const auto& words = statement.words;
  const auto& operands = statement.operands;
  if (words.size() != 8 || words[5] != "f32" || words[6] != words[7])
    refuse("products of f16, bf16 or tf32 into f32 are modelled");
  Wgmma product{};
  product.elements = elements_of(words[7]);
  product.depth = 32 / bytes_of(product.elements);
  const std::size_t n = words[4].find('n'), k = words[4].find('k');
  if (!starts_with(words[4], "m64n") || k == std::string::npos ||
      std::stoi(words[4].substr(k + 1)) != product.depth)
    refuse("a shape that doesn't exist");
  product.columns = std::stoi(words[4].substr(n + 1));
  if (product.columns % 8 != 0 || product.columns < 8 || product.columns > 256)
    refuse("a shape that doesn't exist");
  const bool in_registers = operands.at(1).is(Operand::Kind::vector),
             is_narrow = bytes_of(product.elements) == 2;
  statement.expect_operands(6 + std::size_t(is_narrow) * (in_registers ? 1 : 2));
  for (const Operand& each : operands[0].elements())
    product.d.push_back(decoder.destination(each, 32));
  if (in_registers)
    for (const Operand& each : operands[1].list) product.a.push_back(decoder.source(each, 32));
  else
    product.a_descriptor = decoder.source(operands[1], 64);
  product.b_descriptor = decoder.source(operands[2], 64);
  product.keeps_sums = decoder.source(operands[3], 1);
  product.a_sign = sign(operands[4]);
  product.b_sign = sign(operands[5]);
  product.a_depth_major = !is_narrow || in_registers || operands[6].value == 0;
  product.b_depth_major = !is_narrow || operands.back().value == 0;
  if (product.d.size() != std::size_t(product.columns) / 2 ||
      (in_registers && product.a.size() != 4))
    refuse("another number of registers");
  const auto shared =
      std::make_shared<const Wgmma>(std::move(product));  // what is under way refers to it
  return [shared](Warp& warp, Lanes lanes) { shared->issue(warp, lanes); };
}

}  // namespace

Action decode_warpgroup(Decoder& decoder, const Statement& statement) {
  if (statement.name() != "wgmma") return {};
  if (statement.has("fence")) {
    statement.allow({"fence", "sync", "aligned"}, false);
    return [](Warp& warp, Lanes lanes) {
      require_whole(warp, lanes, "wgmma.fence");
      warp.products_fenced = true;
    };
  }
  if (statement.has("commit_group")) {
    statement.allow({"commit_group", "sync", "aligned"}, false);
    return [](Warp& warp, Lanes lanes) {
      require_whole(warp, lanes, "wgmma.commit_group");
      warp.products.commit();
    };
  }
  if (statement.has("wait_group")) {
    statement.allow({"wait_group", "sync", "aligned"}, false);
    const std::size_t left = std::size_t(statement.operands.at(0).value);
    return [=](Warp& warp, Lanes lanes) {
      require_whole(warp, lanes, "wgmma.wait_group");
      warp.products_fenced = false;  // registers will be touched
      warp.products.wait(left, [&](WarpgroupProduct& product) {
        product.finish(warp, product);
        --warp.block->products_under_way;
      });
      warp.sums.clear();
      warp.factors.clear();
      for (const auto& group : warp.products.committed)
        for (const WarpgroupProduct& product : group) hold_registers(warp, product);
      for (const WarpgroupProduct& product : warp.products.open) hold_registers(warp, product);
    };
  }
  return statement.has("mma_async") ? decode_product(decoder, statement) : Action();
}

}  // namespace ptx
