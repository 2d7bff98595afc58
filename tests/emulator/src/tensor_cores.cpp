// Matrices of a warp: ldmatrix, stmatrix, and mma.sync with sums in single precision.
#include "tensor_cores.hpp"

#include "block.hpp"
#include "instructions.hpp"

namespace ptx {
namespace {

// 8 rows of 16 bytes a matrix; each lane gives the address of a row, and has two elements of every
// matrix.
struct MatrixAccess {
  std::vector<Register> registers;  // a matrix each
  Address address;
  bool transposed, loads;

  void operator()(Warp& warp, Lanes lanes) const {
    const char* what = loads ? "ldmatrix" : "stmatrix";
    if (lanes != kAllLanes) {
      warp.find("matrix instruction by part of a warp", what);
      return;
    }
    u32 addresses[kWarpSize];  // before a register is written to
    for (int lane = 0; lane < kWarpSize; ++lane) addresses[lane] = u32(address.of(warp, lane));
    for (std::size_t matrix = 0; matrix < registers.size(); ++matrix) {
      u16 rows[8][8];
      u32* values = warp.values<u32>(registers[matrix]);
      if (!loads)
        for (int lane = 0; lane < kWarpSize; ++lane)
          for (int half = 0; half < 2; ++half)
            element(rows, lane, half) = u16(values[lane] >> (16 * half));
      for (int row = 0; row < 8; ++row)
        if (const int lane = int(matrix) * 8 + row;
            !access_row(warp, lane, addresses[lane], rows[row], what))
          return;
      if (loads)
        for (int lane = 0; lane < kWarpSize; ++lane)
          values[lane] = element(rows, lane, 0) | u32(element(rows, lane, 1)) << 16;
    }
  }

 private:
  u16& element(u16 (&rows)[8][8], int lane, int half) const {
    const int row = lane / 4, column = lane % 4 * 2 + half;
    return transposed ? rows[column][row] : rows[row][column];
  }
  bool access_row(Warp& warp, int lane, u32 at, u16 (&row)[8], const char* what) const {
    SharedMemory& shared = warp.block->shared;
    if (!shared.allows(warp, at, sizeof row, sizeof row, lane, what)) return false;
    if (loads) {
      shared.note_read(warp, at, sizeof row, lane);
      std::memcpy(row, shared.at(at), sizeof row);
    } else {
      shared.note_write(warp, at, sizeof row, lane, row);
      std::memcpy(shared.at(at), row, sizeof row);
    }
    return true;
  }
};

Action decode_matrix_access(Decoder& decoder, const Statement& statement) {
  const bool loads = statement.name() == "ldmatrix";
  statement.allow({"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"});
  statement.expect_operands(2);
  if (statement.type() != "b16") refuse("matrices of 16-bit elements are modelled");
  MatrixAccess access{
      {}, address_of(decoder, statement.operands[loads ? 1 : 0]), statement.has("trans"), loads};
  for (const Operand& value : statement.operands[loads ? 0 : 1].elements())
    access.registers.push_back(loads ? decoder.destination(value, 32) : decoder.source(value, 32));
  const std::string count = statement.one_of({"x1", "x2", "x4"});
  if (count.empty() || access.registers.size() != std::size_t(count[1] - '0'))
    refuse("another number of matrices");
  return access;
}

// d[16][8] = a[16][K] b[K][8] + c. A register of 32 bits holds one tf32 or two narrower elements of
// a lane's.
struct Product {
  Elements elements;
  int depth;  // K
  std::vector<Register> d, a, b, c;

  void operator()(Warp& warp, Lanes lanes) const {
    if (lanes != kAllLanes) {
      warp.find("matrix instruction by part of a warp", "mma");
      return;
    }
    float left[16 * 16], right[16 * 8], sums[16 * 8];
    const int each = elements == Elements::tf32 ? 1 : 2;  // elements of a register
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int group = lane / 4, thread = lane % 4;
      for (std::size_t i = 0; i < a.size(); ++i)
        for (int j = 0; j < each; ++j) {
          const int row = group + int(i % 2) * 8,
                    column = thread * each + j + int(i / 2) * 4 * each;
          left[row * depth + column] = element_of(elements, warp.values<u32>(a[i])[lane], j);
        }
      for (std::size_t i = 0; i < b.size(); ++i)
        for (int j = 0; j < each; ++j)
          right[(thread * each + j + int(i) * 4 * each) * 8 + group] =
              element_of(elements, warp.values<u32>(b[i])[lane], j);
      for (int i = 0; i < 4; ++i)
        sums[sum_index(lane, i)] = warp.values<float>(c[std::size_t(i)])[lane];
    }
    multiply(left, right, sums, 16, 8, depth, warp.launch().settings.rough);
    for (int lane = 0; lane < kWarpSize; ++lane)
      for (int i = 0; i < 4; ++i)
        warp.values<float>(d[std::size_t(i)])[lane] = sums[sum_index(lane, i)];
  }

 private:
  static int sum_index(int lane, int i) {
    return (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
  }
};

Action decode_mma(Decoder& decoder, const Statement& statement) {
  const auto& words = statement.words;
  const auto& operands = statement.operands;
  if (words.size() != 10)
    refuse("another product than mma.sync.aligned.shape.row.col and four types");
  const std::string type = words[8];
  const Elements elements = elements_of(type);
  statement.expect_operands(4);
  statement.allow(
      {"sync", "aligned", "m16n8k16", "m16n8k8", "row", "col", "f32", "f16", "bf16", "tf32"});
  if (words[1] != "sync" || words[4] != "row" || words[5] != "col" || statement.type() != "f32" ||
      words[words.size() - 4] != "f32" || words[words.size() - 3] != type)
    refuse("products of f16, bf16 or tf32 into f32 are modelled");
  Product product{elements, statement.has("m16n8k16") ? 16 : 8, {}, {}, {}, {}};
  if (product.elements == Elements::tf32 && product.depth != 8)
    refuse("m16n8k8 is modelled for tf32");
  const auto sources = [&](const Operand& operand, std::vector<Register>& registers) {
    for (const Operand& each : operand.elements()) registers.push_back(decoder.source(each, 32));
  };
  sources(operands[1], product.a);
  sources(operands[2], product.b);
  sources(operands[3], product.c);
  for (const Operand& each : operands[0].elements())
    product.d.push_back(decoder.destination(each, 32));
  const std::size_t wanted =
      std::size_t(16 * product.depth / kWarpSize / (product.elements == Elements::tf32 ? 1 : 2));
  if (product.a.size() != wanted || product.b.size() != wanted / 2 || product.c.size() != 4 ||
      product.d.size() != 4)
    refuse("another number of registers");
  return product;
}

}  // namespace

Elements elements_of(const std::string& type) {
  if (type == "f16") return Elements::f16;
  if (type == "bf16") return Elements::bf16;
  if (type == "tf32") return Elements::tf32;
  refuse("products of ." + type + " aren't modelled");
}

void multiply(const float* left, const float* right, float* sums, int rows, int columns, int depth,
              bool rough) {
  constexpr int kSummedExactly = 8;
  for (int row = 0; row < rows; ++row) {
    float* sum = sums + row * columns;
    if (!rough) {
      for (int k = 0; k < depth; ++k) {
        const float factor = left[row * depth + k];
        for (int column = 0; column < columns; ++column)
          sum[column] = __builtin_fmaf(factor, right[k * columns + column], sum[column]);
      }
      continue;
    }
    for (int column = 0; column < columns; ++column)
      for (int start = 0; start < depth; start += kSummedExactly) {
        double exact = sum[column];
        for (int k = start; k < start + kSummedExactly; ++k)
          exact += double(left[row * depth + k]) * right[k * columns + column];
        sum[column] = rounded_to_float(exact, Rounding::zero);
      }
  }
}

Action decode_tensor_core(Decoder& decoder, const Statement& statement) {
  const std::string& name = statement.name();
  if (name == "ldmatrix" || name == "stmatrix") return decode_matrix_access(decoder, statement);
  return name == "mma" ? decode_mma(decoder, statement) : Action();
}

}  // namespace ptx
