#include "decoder.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <set>

#include "findings.hpp"
#include "instructions.hpp"
#include "spaces.hpp"

namespace ptx {

void refuse(const std::string& what) { throw std::invalid_argument(what); }

bool Statement::has(const std::string& word) const {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::string Statement::one_of(std::initializer_list<const char*> candidates) const {
  for (const char* candidate : candidates)
    if (has(candidate)) return candidate;
  return "";
}

void Statement::allow(std::initializer_list<const char*> others, bool and_type) const {
  for (std::size_t i = 1; i + (and_type ? 1 : 0) < words.size(); ++i)
    if (std::none_of(others.begin(), others.end(),
                     [&](const char* other) { return words[i] == other; }))
      refuse("." + words[i] + " isn't modelled");
}

void Statement::expect_operands(std::size_t count) const {
  if (operands.size() != count) refuse(format("%zu operands, not %zu", operands.size(), count));
}

int bits_of(const std::string& type) {
  if (type == "pred") return 1;
  static const std::string kLetters = "busf";
  std::size_t digit = starts_with(type, "bf") ? 2 : 1;
  if (type.size() <= digit || kLetters.find(type[0]) == std::string::npos) return 0;
  const std::size_t cross = type.find("x2");
  const std::string digits = type.substr(digit, cross == std::string::npos ? cross : cross - digit);
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return 0;
  return std::atoi(digits.c_str()) * (cross == std::string::npos ? 1 : 2);
}

int value_bits(const std::string& type, int least) {
  const int bits = bits_of(type);
  if (bits < least || (bits != 8 && bits != 16 && bits != 32 && bits != 64))
    refuse("the type ." + type + " isn't modelled here");
  return bits;
}

Decoder::Decoder(const std::string& text, bool contracts)
    : scanner_(text), contracts_(contracts), kernel_(new Kernel) {}

std::unique_ptr<Kernel> Decoder::decode() {
  try {
    read_module();
  } catch (const std::logic_error&
               problem) {  // of the standard library, too: an operand that isn't there
    const std::string& source = scanner_.source();
    refuse(format("ptx:%d%s%s: ", scanner_.line(), source.empty() ? "" : ", ", source.c_str()) +
           problem.what());
  }
  return std::move(kernel_);
}

namespace {

// The whole text as a number, in a base that its start tells unless one is given.
u64 whole_number(const std::string& text, int base = 0) {
  const bool is_binary = text.compare(0, 2, "0b") == 0 || text.compare(0, 2, "0B") == 0;
  const char* start = text.c_str() + (is_binary ? 2 : 0);
  char* end = nullptr;
  errno = 0;
  const u64 value = text[0] == '-' ? u64(std::strtoll(start, &end, base))
                                   : std::strtoull(start, &end, is_binary ? 2 : base);
  if (*end == 'U' && base == 0) ++end;
  if (*end != '\0' || end == start || errno != 0) refuse("not a number: " + text);
  return value;
}

}  // namespace

// ---- the module ----

void Decoder::read_module() {
  while (scanner_.advance()) {
    if (scanner_.looks_at(".version") || scanner_.looks_at(".address_size") ||
        scanner_.looks_at(".file") || scanner_.looks_at(".target")) {
      scanner_.skip_line();
    } else if (scanner_.looks_at(".section")) {
      scanner_.until('{');
      scanner_.until('}');
    } else if (scanner_.looks_at(".extern .shared")) {
      const std::string declaration = scanner_.until(';');
      const std::size_t bracket = declaration.find('[');
      const std::size_t blank = declaration.rfind(' ', bracket);
      dynamic_shared_ = declaration.substr(blank + 1, bracket - blank - 1);
    } else if (scanner_.looks_at(".visible .entry") || scanner_.looks_at(".entry")) {
      if (!kernel_->name.empty()) refuse("a second kernel in the module");
      read_kernel();
    } else if (scanner_.looks_at(".global") || scanner_.looks_at(".const") ||
               scanner_.looks_at(".visible .global")) {
      read_array(scanner_.until(';'));
    } else if (scanner_.looks_at(".extern .func") || scanner_.looks_at(".func")) {
      refuse("functions aren't modelled: " + scanner_.excerpt());
    } else if (!scanner_.take(';') && !scanner_.take('}')) {
      refuse("unknown directive: " + scanner_.excerpt());
    }
  }
  if (kernel_->name.empty()) refuse("no kernel in the module");
}

namespace {

// `.align 4 .b8 name[12]`, without what it is initialised with.
struct Variable {
  std::string name;
  int element_bits = 8;
  std::size_t count = 1;
  u32 alignment = 1;
  std::size_t bytes() const { return count * std::size_t(element_bits) / 8; }

  explicit Variable(const std::string& declaration) {
    const std::vector<std::string> words = split(declaration, ' ');
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (words[i] == ".align") {
        alignment = u32(std::atoi(words.at(++i).c_str()));
      } else if (!words[i].empty() && words[i][0] == '.') {
        if (const int bits = bits_of(words[i].substr(1))) element_bits = bits;
      } else if (!words[i].empty()) {
        const std::size_t bracket = words[i].find('[');
        name = words[i].substr(0, bracket);
        if (bracket != std::string::npos)
          count = std::size_t(std::atol(words[i].c_str() + bracket + 1));
      }
    }
    constexpr std::size_t kMostElements = 1u << 28;
    if (element_bits < 8 || alignment < 1 || count > kMostElements)
      refuse("an odd variable: " + declaration);
  }
};

u32 round_up(u32 value, u32 multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

void Decoder::read_array(const std::string& declaration) {
  const std::size_t equals = declaration.find('=');
  const Variable variable(declaration.substr(0, equals));
  std::vector<u8> bytes(variable.bytes());
  if (equals != std::string::npos) {
    const std::size_t open = declaration.find('{', equals), close = declaration.find('}', equals);
    std::size_t at = 0;
    const std::size_t size = std::size_t(variable.element_bits) / 8;
    for (const std::string& element : split(declaration.substr(open + 1, close - open - 1), ',')) {
      const u64 value = whole_number(element);
      if (at + size > bytes.size()) refuse("more values than elements in " + variable.name);
      std::memcpy(&bytes[at], &value, size);
      at += size;
    }
  }
  kernel_->arrays.emplace_back(variable.name, std::move(bytes));
}

void Decoder::read_kernel() {
  const std::string head = scanner_.until('(');
  kernel_->name = head.substr(head.rfind(' ') + 1);
  read_parameters(scanner_.until(')'));
  scanner_.until('{');
  scopes_.emplace_back();
  read_body();
  kernel_->static_shared = round_up(kernel_->static_shared, kSharedAlignment);
  keep_product_registers();
  Instruction end;
  end.act = [](Warp& warp, Lanes) { warp.state = State::done; };
  end.ptx_line = scanner_.line();
  end.text = "(end)";
  kernel_->code.push_back(std::move(end));
}

// Of the registers that an instruction reads and writes those matter that wgmma has as well.
void Decoder::keep_product_registers() {
  std::set<Register> products;
  for (const Instruction& instruction : kernel_->code)
    if (instruction.is_warpgroups)
      for (const auto* registers : {&instruction.reads, &instruction.writes})
        products.insert(registers->begin(), registers->end());
  for (Instruction& instruction : kernel_->code)
    for (auto* registers : {&instruction.reads, &instruction.writes})
      registers->erase(std::remove_if(registers->begin(), registers->end(),
                                      [&](Register reg) { return !products.count(reg); }),
                       registers->end());
}

void Decoder::read_parameters(const std::string& list) {
  u32 offset = 0;
  for (const std::string& declaration : split(list, ',')) {
    const Variable variable(declaration);
    // The alignment of what a pointer points to isn't the parameter's.
    const bool is_pointer = declaration.find(".ptr") != std::string::npos;
    const u32 own = u32(variable.element_bits) / 8;
    offset = round_up(offset, is_pointer ? own : std::max(own, variable.alignment));
    kernel_->parameters.push_back({variable.name, u32(variable.bytes()), offset});
    offset += u32(variable.bytes());
  }
  kernel_->parameter_bytes = offset;
  kernel_->parameter_memory.reset(new u64[offset / 8 + 1]());
}

void Decoder::read_body() {
  while (scanner_.advance()) {
    if (scanner_.take('{')) {
      scopes_.emplace_back();
    } else if (scanner_.take('}')) {
      close_scope();
      if (scopes_.empty()) return;
    } else if (scanner_.take(';')) {
      continue;
    } else if (scanner_.looks_at(".reg")) {
      declare_registers(scanner_.until(';'));
    } else if (scanner_.looks_at(".local") || scanner_.looks_at(".shared")) {
      const bool local = scanner_.looks_at(".local");
      declare_memory(scanner_.until(';'), local);
    } else if (scanner_.looks_at(".pragma")) {
      scanner_.until(';');
    } else if (scanner_.looks_at(".")) {
      refuse("unknown directive: " + scanner_.excerpt());
    } else if (const std::string name = scanner_.label(); !name.empty()) {
      place_label(name);
    } else {
      const int line = scanner_.line();
      read_instruction(scanner_.until(';'), line);
    }
  }
  refuse("the text ends inside of the kernel");
}

void Decoder::close_scope() {
  for (const auto& [name, place] : scopes_.back().labels) {
    if (*place >= 0) continue;
    if (scopes_.size() == 1) refuse("unknown label " + name);
    scopes_[scopes_.size() - 2].labels.emplace(name, place);
  }
  scopes_.pop_back();
}

void Decoder::place_label(const std::string& name) {
  products_.clear();
  *label(name) = int(kernel_->code.size());
}

std::shared_ptr<int> Decoder::label(const std::string& name) {
  for (std::size_t i = scopes_.size(); i-- > 0;)
    if (const auto found = scopes_[i].labels.find(name); found != scopes_[i].labels.end())
      return found->second;
  return scopes_.back().labels[name] = std::make_shared<int>(-1);
}

void Decoder::declare_registers(const std::string& declaration) {
  const std::vector<std::string> words = split(declaration, ' ');
  const std::string type = words.size() > 1 ? words[1].substr(1) : "";
  const int bits = std::max(bits_of(type), type == "pred" ? 1 : 16);
  if (!bits_of(type) || bits > 64) refuse("registers of an unknown type: " + declaration);
  const std::string names = declaration.substr(declaration.find(words[1]) + words[1].size());
  for (const std::string& name : split(names, ',')) {
    const std::size_t bracket = name.find('<');
    if (bracket == std::string::npos) scopes_.back().registers[name] = {bits, kNoRegister};
    const u64 count = bracket == std::string::npos
                          ? 0
                          : whole_number(name.substr(bracket + 1, name.find('>') - bracket - 1));
    constexpr u64 kMostRegisters = 1 << 18;
    if (count > kMostRegisters) refuse("more registers than a kernel has: " + declaration);
    for (u64 i = 0; i < count; ++i)
      scopes_.back().registers[name.substr(0, bracket) + std::to_string(i)] = {bits, kNoRegister};
  }
}

void Decoder::declare_memory(const std::string& declaration, bool local) {
  const Variable variable(declaration);
  u32& total = local ? kernel_->local_bytes : kernel_->static_shared;
  total = round_up(total, std::max(16u, variable.alignment));
  (local ? local_symbols_ : shared_symbols_)[variable.name] = total;
  total += u32(variable.bytes());
}

// ---- instructions ----

void Decoder::read_instruction(const std::string& text, int line) {
  Instruction instruction;
  instruction.ptx_line = line;
  instruction.source = scanner_.source();
  instruction.text = text;
  std::string rest = text;
  if (rest[0] == '@') {
    instruction.guard_negated = rest[1] == '!';
    const std::size_t start = instruction.guard_negated ? 2 : 1,
                      end = rest.find_first_of(" \t", start);
    const Operand guard = operand(rest.substr(start, end - start));
    instruction.guard = source(guard, 1);
    rest = trimmed(rest.substr(std::min(end, rest.size())));
  }
  const std::size_t end = std::min(rest.find_first_of(" \t{["), rest.size());
  try {
    if (end == 0) refuse("an instruction without a name");
    Statement statement{rest, split(rest.substr(0, end), '.'), {}};
    for (const std::string& each : split(trimmed(rest.substr(end)), ','))
      statement.operands.push_back(operand(each));
    if (instruction.guard != kNoRegister) products_.clear();
    for (const auto decode :
         {decode_control, decode_mbarrier, decode_bulk_copy, decode_warpgroup, decode_move,
          decode_comparison, decode_memory, decode_atomic, decode_async_copy, decode_tensor_core,
          decode_lanes, decode_conversion, decode_bits, decode_arithmetic}) {
      instruction.act = decode(*this, statement);
      if (instruction.act) break;
    }
    if (!instruction.act) refuse("the instruction isn't modelled");
    if (instruction.guard != kNoRegister) products_.clear();
  } catch (const std::logic_error& problem) {
    refuse(std::string(problem.what()) + " in: " + text);
  }
  instruction.is_warpgroups = starts_with(rest, "wgmma");
  instruction.reads = std::move(reads_);
  instruction.writes = std::move(writes_);
  reads_.clear();
  writes_.clear();
  kernel_->code.push_back(std::move(instruction));
}

Register Decoder::allocate(int bits) {
  const int bytes = bits == 1 ? int(sizeof(Lanes)) : bits / 8 * kWarpSize;
  const int alignment = std::min(kWarpSize, bytes);
  kernel_->register_bytes = (kernel_->register_bytes + alignment - 1) / alignment * alignment;
  const Register reg = kernel_->register_bytes;
  kernel_->register_bytes += bytes;
  return reg;
}

Register Decoder::constant(u64 value, int bits) {
  if (bits > 1 && bits < 64) value &= (u64{1} << bits) - 1;
  const auto [place, is_new] = constants_.try_emplace({bits, value}, kNoRegister);
  if (is_new) {
    place->second = allocate(bits);
    kernel_->constants.push_back({place->second, bits, value});
  }
  return place->second;
}

Decoder::Declared* Decoder::find_register(const std::string& name) {
  for (std::size_t i = scopes_.size(); i-- > 0;)
    if (const auto found = scopes_[i].registers.find(name); found != scopes_[i].registers.end())
      return &found->second;
  return nullptr;
}

Operand Decoder::operand(std::string text) {
  text = trimmed(text);
  if (text.empty()) refuse("an empty operand");
  Operand result;
  if (text == "_") {
    result.kind = Operand::Kind::sink;
  } else if (text[0] == '!') {
    if (text[1] == '!') refuse("negated twice");
    result = operand(text.substr(1));
    result.negated = true;
  } else if (text[0] == '{') {
    result.kind = Operand::Kind::vector;
    for (const std::string& element : split(text.substr(1, text.rfind('}') - 1), ','))
      result.list.push_back(operand(element));
  } else if (text[0] == '[') {
    result = address(text.substr(1, text.rfind(']') - 1));
  } else if (const std::size_t bar = text.find('|'); bar != std::string::npos) {
    result = operand(text.substr(0, bar));
    const Operand second = operand(text.substr(bar + 1));
    result.has_second = true;
    if (second.is(Operand::Kind::reg)) result.second = destination(second, 1);
  } else if (Declared* declared = find_register(text)) {
    if (declared->reg == kNoRegister) declared->reg = allocate(declared->bits);
    result.kind = Operand::Kind::reg;
    result.reg = declared->reg;
    result.bits = declared->bits;
  } else if (text[0] == '%') {
    result = special(text);
  } else if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-' ||
             text[0] == '+') {
    result = number(text);
  } else if (text == "true" || text == "false") {
    result.value = text == "true";
  } else {
    result.kind = Operand::Kind::symbol;
    result.symbol = text;
  }
  return result;
}

// base, base+4, base-4; then coordinates after a comma
Operand Decoder::address(const std::string& text) {
  Operand result;
  result.kind = Operand::Kind::address;
  const std::vector<std::string> parts = split(text, ',');
  if (parts.empty()) refuse("an empty address");
  std::string base = parts[0];
  const std::size_t sign = base.find_first_of("+-", 1);
  if (sign != std::string::npos) {
    const bool plus = base[sign] == '+';
    const std::string offset = trimmed(base.substr(plus ? sign + 1 : sign));
    result.value = whole_number(offset);
    base = trimmed(base.substr(0, sign));
  }
  result.list.push_back(operand(base));
  for (std::size_t i = 1; i < parts.size(); ++i) result.list.push_back(operand(parts[i]));
  return result;
}

Operand Decoder::number(const std::string& text) {
  Operand result;
  const std::string start = text.substr(0, 2);
  if (start == "0f" || start == "0F" || start == "0d" || start == "0D") {
    result.number = start[1] == 'f' || start[1] == 'F' ? Operand::Number::float_bits
                                                       : Operand::Number::double_bits;
    result.value = whole_number(text.substr(2), 16);
  } else if (text.find('.') != std::string::npos) {
    result.number = Operand::Number::decimal;
    std::size_t end = 0;
    result.value = bits_as<u64>(std::stod(text, &end));
    if (end != text.size()) refuse("not a number: " + text);
  } else {
    result.value = whole_number(text);
  }
  return result;
}

Operand Decoder::special(const std::string& name) {
  static const std::map<std::string, Special> kSpecials = {
      {"%tid.x", Special::tid_x},          {"%tid.y", Special::zero},
      {"%tid.z", Special::zero},           {"%ntid.x", Special::ntid_x},
      {"%ntid.y", Special::one},           {"%ntid.z", Special::one},
      {"%ctaid.x", Special::ctaid_x},      {"%ctaid.y", Special::ctaid_y},
      {"%ctaid.z", Special::ctaid_z},      {"%nctaid.x", Special::nctaid_x},
      {"%nctaid.y", Special::nctaid_y},    {"%nctaid.z", Special::nctaid_z},
      {"%laneid", Special::laneid},        {"%warpid", Special::warpid},
      {"%cluster_ctarank", Special::zero}, {"%cluster_ctaid.x", Special::zero},
      {"%cluster_nctaid.x", Special::one}, {"%clusterid.x", Special::ctaid_x}};
  const auto found = kSpecials.find(name);
  if (found == kSpecials.end()) refuse("unknown register " + name);
  Operand result;
  result.kind = Operand::Kind::reg;
  result.bits = 32;
  for (const auto& [special, reg] : kernel_->specials)
    if (special == found->second) result.reg = reg;
  if (result.reg == kNoRegister) {
    result.reg = allocate(32);
    kernel_->specials.emplace_back(found->second, result.reg);
  }
  return result;
}

u64 Decoder::symbol(const std::string& name) {
  if (name == dynamic_shared_)
    return kSharedBase + round_up(kernel_->static_shared, kSharedAlignment);
  if (const auto found = shared_symbols_.find(name); found != shared_symbols_.end())
    return kSharedBase + found->second;
  if (const auto found = local_symbols_.find(name); found != local_symbols_.end())
    return kLocalBase + found->second;
  for (const Parameter& parameter : kernel_->parameters)
    if (parameter.name == name)
      return reinterpret_cast<u64>(kernel_->parameter_memory.get()) + parameter.offset;
  for (const auto& [array, bytes] : kernel_->arrays)
    if (array == name) return reinterpret_cast<u64>(bytes.data());
  refuse("unknown symbol " + name);
}

Register Decoder::source(const Operand& operand, int bits) {
  if (operand.negated) refuse("a negated operand isn't modelled here");
  switch (operand.kind) {
    case Operand::Kind::reg:
      if (operand.bits != bits)
        refuse(format("an operand of %d bits where %d are wanted", operand.bits, bits));
      reads_.push_back(operand.reg);
      return operand.reg;
    case Operand::Kind::symbol: return constant(symbol(operand.symbol), bits);
    case Operand::Kind::number: break;
    default: refuse("an operand of the wrong kind");
  }
  u64 value = operand.value;
  const bool is_double =
      operand.number == Operand::Number::double_bits || operand.number == Operand::Number::decimal;
  if (is_double && bits == 32) value = bits_as<u32>(static_cast<float>(bits_as<double>(value)));
  if (bits == 1) value = value ? kAllLanes : 0;
  return constant(value, bits);
}

std::pair<Register, int> Decoder::wide_source(const Operand& operand, int least_bits) {
  if (!operand.is(Operand::Kind::reg))
    return {source(operand, std::max(16, least_bits)), std::max(16, least_bits)};
  if (operand.bits < least_bits)
    refuse(format("an operand of %d bits where %d are wanted", operand.bits, least_bits));
  reads_.push_back(operand.reg);
  return {operand.reg, operand.bits};
}

Register Decoder::destination(const Operand& operand, int bits) {
  if (operand.is(Operand::Kind::sink)) return allocate(bits);
  if (!operand.is(Operand::Kind::reg) || operand.bits != bits)
    refuse(format("not a register of %d bits to write to", bits));
  const Register reg = operand.reg;
  writes_.push_back(reg);
  for (auto it = products_.begin(); it != products_.end();) {
    const auto& [product, factors] = *it;
    it = product == reg || factors.first == reg || factors.second == reg ? products_.erase(it)
                                                                         : std::next(it);
  }
  return reg;
}

std::pair<Register, int> Decoder::base(const Operand& address) {
  if (!address.is(Operand::Kind::address)) refuse("not an address");
  const Operand& base = address.list[0];
  return base.is(Operand::Kind::reg) ? wide_source(base, 32) : std::make_pair(source(base, 64), 64);
}

const std::pair<Register, Register>* Decoder::product(Register reg) const {
  const auto found = contracts_ ? products_.find(reg) : products_.end();
  return found == products_.end() ? nullptr : &found->second;
}

void Decoder::remember_product(Register reg, Register a, Register b) {
  if (reg != a && reg != b) products_[reg] = {a, b};
}

Address address_of(Decoder& decoder, const Operand& operand) {
  const auto [base, bits] = decoder.base(operand);
  return {base, bits, operand.value};
}

}  // namespace ptx
