// From the text of a PTX module to a kernel.
#pragma once

#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernel.hpp"
#include "scanner.hpp"

namespace ptx {

// What an instruction does, for the lanes whose guard holds; there is one at least.
using Action = std::function<void(Warp&, Lanes)>;

struct Operand {
  enum class Kind { reg, number, vector, address, symbol, sink };
  enum class Number { integer, float_bits, double_bits, decimal };

  Kind kind = Kind::number;
  Register reg = kNoRegister;
  int bits = 0;  // of a register; 1: a predicate
  Number number = Number::integer;
  u64 value = 0;              // of a number; added to an address
  std::vector<Operand> list;  // of a vector; of an address: its base, then coordinates
  std::string symbol;
  bool negated = false;
  Register second = kNoRegister;  // of a predicate after a bar: p|q
  bool has_second = false;

  bool is(Kind other) const { return kind == other; }
  // A vector's elements, or the operand alone.
  std::vector<Operand> elements() const {
    return is(Kind::vector) ? list : std::vector<Operand>{*this};
  }
};

struct Statement {
  std::string text;
  std::vector<std::string> words;  // of the opcode: add, rn, f32
  std::vector<Operand> operands;

  const std::string& name() const { return words.front(); }
  const std::string& type() const { return words.back(); }
  bool has(const std::string& word) const;
  // Which of the words it has; empty for none.
  std::string one_of(std::initializer_list<const char*> candidates) const;
  // Its opcode has no other words than its name, these and, where asked, its type.
  void allow(std::initializer_list<const char*> others, bool and_type = true) const;
  void expect_operands(std::size_t count) const;
};

// The bits of a type: 32 for f32, 1 for pred, 0 for what isn't a type.
int bits_of(const std::string& type);
// The bits of a type of values: `least` (8, 16 or 32) up to 64; refuses all others.
int value_bits(const std::string& type, int least);

class Decoder {
 public:
  // `contracts`: a product and the sum after it are one fma, as ptxas may make them.
  Decoder(const std::string& text, bool contracts);
  // Throws std::invalid_argument, with the line, at what isn't understood.
  std::unique_ptr<Kernel> decode();

  // The register that a source is in: its own, or a constant's. It has so many bits. Sources are
  // asked for before destinations: writing to a factor drops the remembered product.
  Register source(const Operand& operand, int bits);
  // A register of at least so many bits, and how many it has.
  std::pair<Register, int> wide_source(const Operand& operand, int least_bits);
  Register destination(const Operand& operand, int bits);
  // The register of an address's base and its bits: 32 in shared memory only.
  std::pair<Register, int> base(const Operand& address);
  Register allocate(int bits);
  // Where a branch goes, once it is known.
  std::shared_ptr<int> label(const std::string& name);
  Kernel& kernel() { return *kernel_; }

  // The two factors of a product that may still be contracted, by its register; null where there is
  // none.
  const std::pair<Register, Register>* product(Register reg) const;
  void remember_product(Register reg, Register a, Register b);

 private:
  struct Declared {
    int bits;
    Register reg;  // placed when it is first used
  };
  struct Scope {
    std::unordered_map<std::string, Declared> registers;
    std::unordered_map<std::string, std::shared_ptr<int>> labels;
  };

  void read_module();
  void read_array(const std::string& declaration);
  void read_kernel();
  void read_parameters(const std::string& list);
  void read_body();
  void keep_product_registers();
  void declare_registers(const std::string& declaration);
  void declare_memory(const std::string& declaration, bool local);
  void place_label(const std::string& name);
  void read_instruction(const std::string& text, int line);
  void close_scope();

  Operand operand(std::string text);
  Operand address(const std::string& text);
  Operand number(const std::string& text);
  Operand special(const std::string& name);
  Declared* find_register(const std::string& name);
  u64 symbol(const std::string& name);
  Register constant(u64 value, int bits);

  Scanner scanner_;
  bool contracts_;
  std::unique_ptr<Kernel> kernel_;
  std::vector<Scope> scopes_;
  std::map<std::pair<int, u64>, Register> constants_;
  std::map<std::string, u32> shared_symbols_, local_symbols_;
  std::string dynamic_shared_;
  std::unordered_map<Register, std::pair<Register, Register>> products_;
  std::vector<Register> reads_, writes_;  // of the instruction at hand
};

}  // namespace ptx
