"""A launch's arguments as the bytes of PTX parameters, and the memory that they lead to."""

import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

_FORMATS = {
    "i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
    "fp16": "e", "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip
_SWIZZLED_BYTES = {0: 1 << 30, 1: 32, 2: 64, 3: 128}  # the widest inner box of a tensor map, by its swizzle
_MAP_BYTES = 128  # of a CUtensorMap
_ADDRESS_BITS = 47  # of the host


def pack(
    signature: Iterable[Any], values: Iterable[Any], addresses: dict[int, int], descriptors: Iterator[dict[str, Any]]
) -> list[bytes]:
    """The bytes of each parameter.

    Args:
        signature: a type of Triton's for each value, `constexpr` for what isn't passed.
        values: tensors, numbers and tensor descriptors.
        addresses: what the kernel sees, by a tensor's address.
        descriptors: how the compiler lowered each tensor descriptor; empty where it uses no tensor maps.

    Raises:
        ValueError: a tensor map that the driver would refuse, or a type that isn't modelled.
    """
    packed: list[bytes] = []
    for kind, value in zip(signature, values, strict=True):
        if isinstance(kind, tuple):
            packed += pack(kind, value, addresses, descriptors)
        elif kind.startswith("tensordesc"):
            packed += _pack_descriptor(value, addresses, next(descriptors, None))
        elif kind.startswith("*"):
            packed.append(struct.pack("<Q", 0 if value is None else addresses.get(value.data_ptr(), 0)))
        elif kind == "bf16":
            packed.append(struct.pack("<f", value)[2:])
        elif kind != "constexpr":
            if kind not in _FORMATS:
                raise ValueError(f"arguments of type {kind} aren't modelled")
            packed.append(struct.pack("<" + _FORMATS[kind], value))
    return packed


def _pack_descriptor(value: Any, addresses: dict[int, int], lowered: dict[str, Any] | None) -> list[bytes]:
    shape, strides = list(value.shape), list(value.strides)
    ends = [struct.pack("<i", n) for n in shape] + [struct.pack("<q", n) for n in strides]
    if lowered is not None:
        return [_tensor_map(value, addresses, lowered), *ends]
    rounds = [value.round_f32_to_tf32] if hasattr(value, "round_f32_to_tf32") else []  # since Triton 3.7
    flags = [struct.pack("<b", flag) for flag in (value.padding == "nan", *rounds)]
    whole = [struct.pack("<q", n) for n in (*shape, *strides)]
    return [struct.pack("<Q", addresses.get(value.base.data_ptr(), 0)), *whole, *flags, *ends]


def _tensor_map(value: Any, addresses: dict[int, int], lowered: dict[str, Any]) -> bytes:
    """What the emulator has in place of a CUtensorMap, innermost dimension first; refuses what the driver does."""
    size, swizzle = lowered["elem_size"], lowered["swizzle"]
    dimensions, box = list(value.shape)[::-1], list(lowered["block_size"])[::-1]
    strides = [stride * size for stride in list(value.strides)[::-1]]
    address, inner = addresses.get(value.base.data_ptr(), 0), box[0] * size
    wrong = [f"an address {address % 16} bytes past a multiple of 16"] if address % 16 else []
    wrong += [f"a stride of {stride} bytes" for stride in strides[1:] if stride % 16 or stride >= 2**40]
    wrong += [f"a dimension of {n}" for n in dimensions if not 0 < n <= 2**32]
    wrong += [f"a box of {n}" for n in box if not 0 < n <= 256]
    if inner % 16 or inner > _SWIZZLED_BYTES[swizzle]:
        wrong.append(f"an inner box of {inner} bytes with swizzle {swizzle}")
    for i in range(1, len(dimensions)):
        if strides[i] < dimensions[i - 1] * strides[i - 1]:
            wrong.append(f"a stride of {strides[i]} bytes over {dimensions[i - 1]} times {strides[i - 1]}")
    if wrong:
        raise ValueError(f"the driver refuses such a tensor map: {'; '.join(wrong)}")
    strides, dimensions, box = ([*each, *[0] * (5 - len(each))] for each in (strides, dimensions, box))
    fields = (address, len(value.shape), size, swizzle, value.padding == "nan", *strides, *dimensions, *box)
    return struct.pack("<Q4I5Q5I5I", *fields).ljust(_MAP_BYTES, b"\0")


def tensors_of(names: Iterable[str], values: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that arguments are or describe, with names.

    Raises:
        ValueError: a tensor that isn't in the CPU's memory.
    """
    for name, value in zip(names, values, strict=True):
        if isinstance(value, tuple):
            yield from tensors_of([f"{name}[{i}]" for i in range(len(value))], value)
            continue
        tensor = value if isinstance(value, Tensor) else getattr(value, "base", None)
        if not isinstance(tensor, Tensor):
            continue
        if tensor.device.type != "cpu" or (tensor.numel() and tensor.data_ptr() == 0):  # of a fake tensor
            raise ValueError(f"{name} is a tensor of {tensor.device} without memory here; the emulator takes the CPU's")
        yield name, tensor


Span = tuple[str, int, int, bytes]
"""Names, address, bytes, and a byte for each of these: 0 for what lies between elements. Empty where nothing does."""


def place(tensors: dict[str, Tensor], reached: Collection[str]) -> tuple[list[Span], dict[int, int]]:
    """All that the tensors have, from first to last element, at the addresses that the kernel sees.

    Those that overlap are one span. Each has a number above its address, so that an access that misses it hits no
    other; what is reached through addresses in memory is seen where it is.

    Returns:
        The spans, and the addresses that the kernel sees by the tensors' own.
    """
    groups: list[tuple[list[str], int, int]] = []
    extents = {name: (tensor.data_ptr(), _extent(tensor)) for name, tensor in tensors.items() if tensor.numel()}
    for name, (address, size) in sorted(extents.items(), key=lambda item: item[1]):
        names, before, length = groups[-1] if groups else ([], 0, 0)
        if address < before + length:
            groups[-1] = [*names, name], before, max(length, address + size - before)
        else:
            groups.append(([name], address, size))
    spans, addresses = [], {}
    for number, (names, address, size) in enumerate(groups, 1):
        above = 0 if any(name in reached for name in names) else number << _ADDRESS_BITS
        elements = _elements([tensors[name] for name in names], address, size)
        spans.append((" and ".join(names), above + address, size, elements))
        for name in names:
            addresses[tensors[name].data_ptr()] = above + tensors[name].data_ptr()
    return spans, addresses


def own_address(seen: int) -> int:
    """A tensor's address by that which the kernel sees."""
    return seen % (1 << _ADDRESS_BITS)


def _dimensions(tensor: Tensor) -> list[tuple[int, int]]:
    """Strides and sizes, by stride, of those dimensions along which there are other elements."""
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted((stride, n) for stride, n in sizes if stride and n > 1)


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    return (sum((n - 1) * stride for stride, n in _dimensions(tensor)) + 1) * tensor.element_size()


def _elements(tensors: list[Tensor], address: int, size: int) -> bytes:
    for tensor in tensors:  # most often there is one, and it is dense
        dense = 1
        for stride, n in _dimensions(tensor):
            dense = dense * n if stride == dense else 0
        if dense * tensor.element_size() == size:
            return b""
    covered = torch.zeros(size, dtype=torch.uint8, device="cpu")
    for tensor in tensors:
        each = tensor.element_size()
        places = [(1, each), *((stride * each, n) for stride, n in _dimensions(tensor))]
        strides, shape = zip(*places, strict=True)
        covered.as_strided(shape, strides, tensor.data_ptr() - address).fill_(1)
    return b"" if bool(covered.all()) else covered.numpy().tobytes()
