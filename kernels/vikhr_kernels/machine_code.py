"""What the loops of a compiled kernel cost, read from its machine code (SASS, as cuobjdump lists it)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)((?:\.\w+)*)\s*(.*?);")
_SHARED_BYTES_A_CYCLE = 128  # of a multiprocessor
_MULTIPLIED_A_CYCLE = {80: 1024, 90: 2048}  # 16-bit elements, of a multiprocessor
_WARP = 32


@dataclass(frozen=True)
class Instruction:
    """One line of a listing: `address: operation.modifiers operands`."""

    address: int
    operation: str
    modifiers: tuple[str, ...]
    operands: str

    @property
    def width(self) -> int:
        """Bytes that a thread loads or stores."""
        return next((int(bits) // 8 for bits in ("128", "64") if bits in self.modifiers), 4)

    @property
    def shared_bytes(self) -> int:
        """Bytes that a warp moves through shared memory, or in shuffles, which take the same way."""
        if self.operation in ("LDSM", "STSM"):  # so many matrices of 8 x 8 16-bit elements
            return 128 * int(next((count for count in ("4", "2") if count in self.modifiers), "1"))
        if self.operation in ("LDS", "STS", "LDGSTS"):
            return _WARP * self.width
        return _WARP * 4 if self.operation in ("ATOMS", "SHFL") else 0

    @property
    def product(self) -> tuple[int, int, int]:
        """M, N and K of a matrix product: of a warp (HMMA) or of four (HGMMA)."""
        if self.operation == "HMMA":
            return (16, 8, 16) if "16816" in self.modifiers else (16, 8, 8)
        m, n, k = map(int, next(shape for shape in self.modifiers if shape.count("x") == 2).split("x"))
        return m, n, k

    @property
    def operand_bytes(self) -> int:
        """Bytes that a product of four warps reads of shared memory itself."""
        if self.operation != "HGMMA":
            return 0
        m, n, k = self.product
        first_is_there = self.operands.split(",")[1].strip().startswith("gdesc")
        return 2 * k * (n + m * first_is_there)


@dataclass(frozen=True)
class LoopCost:
    """What one pass over a loop's body costs, of tiles that it may hold several of.

    Attributes:
        matrix_instruction: that makes its products, HMMA or HGMMA.
        instructions: of a warp, by tile.
        local_bytes: a thread's loads and stores of spilled registers, by tile.
        tensor_cycles: that the matrix products take a multiprocessor at best, by tile.
        shared_cycles: that shared memory takes to move what they and the rest need, by tile.
    """

    matrix_instruction: str
    instructions: float
    local_bytes: float
    tensor_cycles: float
    shared_cycles: float

    @property
    def shared_a_tensor_cycle(self) -> float:
        """Above 1, shared memory is what the loop waits for."""
        return self.shared_cycles / self.tensor_cycles

    def pipes(self, num_warps: int) -> tuple[float, float, float]:
        """Cycles of a multiprocessor by tile: of tensor cores, shared memory, and four instructions issued in each.

        Spilled registers go the way of shared memory.
        """
        local_cycles = self.local_bytes * _WARP * num_warps / _SHARED_BYTES_A_CYCLE
        return self.tensor_cycles, self.shared_cycles + local_cycles, self.instructions * num_warps / 4


def product_loops(listing: str, architecture: int, num_warps: int, multiplied: int) -> list[LoopCost]:
    """The innermost loops that hold matrix products, the longest first.

    Args:
        listing: machine code of one kernel.
        architecture: that it is for, of _MULTIPLIED_A_CYCLE.
        num_warps: of a program.
        multiplied: multiplications that a program makes for a tile; a loop that makes twice as many was unrolled.
    """
    costs = [_cost(body, architecture, num_warps, multiplied) for body in _innermost(_instructions(listing))]
    return sorted(costs, key=lambda cost: -cost.instructions)


def _instructions(listing: str) -> Iterator[Instruction]:
    for line in listing.splitlines():
        if found := _INSTRUCTION.match(line):
            address, operation, modifiers, operands = found.groups()
            yield Instruction(int(address, 16), operation, tuple(modifiers.split(".")[1:]), operands)


def _innermost(listing: Iterator[Instruction]) -> list[list[Instruction]]:
    """Bodies of the loops with products in which there is no other such."""
    code = list(listing)
    spans = set()
    for instruction in code:
        target = re.search(r"0x([0-9a-f]+)", instruction.operands) if instruction.operation == "BRA" else None
        if target and (start := int(target[1], 16)) < instruction.address:
            spans.add((start, instruction.address))
    bodies = {span: [one for one in code if span[0] <= one.address <= span[1]] for span in sorted(spans)}
    loops = {
        span: body
        for span, body in bodies.items()
        if any(one.operation in ("HMMA", "HGMMA") for one in body) and all(one.operation != "EXIT" for one in body)
    }
    return [
        body
        for (start, end), body in loops.items()
        if not any((start, end) != other and start <= other[0] and other[1] <= end for other in loops)
    ]


def _cost(body: list[Instruction], architecture: int, num_warps: int, multiplied: int) -> LoopCost:
    products = [one for one in body if one.operation in ("HMMA", "HGMMA")]
    groups = {"HMMA": num_warps, "HGMMA": num_warps // 4}
    made = sum(m * n * k * groups[one.operation] for one in products for m, n, k in (one.product,))
    tiles = made / multiplied
    shared = sum(one.shared_bytes * num_warps + one.operand_bytes * (num_warps // 4) for one in body)
    return LoopCost(
        matrix_instruction=products[0].operation,
        instructions=sum(one.operation != "NOP" for one in body) / tiles,
        local_bytes=sum(one.width for one in body if one.operation in ("LDL", "STL")) / tiles,
        tensor_cycles=made / _MULTIPLIED_A_CYCLE[architecture] / tiles,
        shared_cycles=shared / _SHARED_BYTES_A_CYCLE / tiles,
    )
