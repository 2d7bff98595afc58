"""Triton's driver without a GPU: what is launched is compiled for an architecture and executed here."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ptx_emulator import arguments
from ptx_emulator.library import BUILD, Kernel

_SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # that a block may have
_THREADS = 1024  # that a block may have


@dataclass(frozen=True)
class Finding:
    """One instruction that did what it may not do, however often."""

    kernel: str
    kind: str
    detail: str  # of the first time
    source: str  # file:line:column of the Python code, and of the callers it was inlined into
    ptx_line: int
    instruction: str
    times: int = 1

    def __str__(self) -> str:
        return (
            f"{self.kernel}: {self.kind} at {self.source}\n  {self.detail} ({self.times} times)\n"
            f"  ptx:{self.ptx_line} {self.instruction}"
        )


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: str
    grid: tuple[int, int, int]
    ptx: str
    seconds: float
    lane_instructions: int
    executed: frozenset[int] = field(repr=False)  # lines of the PTX, by any lane


@dataclass(frozen=True)
class _Stored:
    """Memory as the last launch that stored to it left it."""

    kernel: str
    tensors: list[Tensor]  # kept, so that no other comes to lie there
    touched: bytes  # a byte for every byte: 1 if it was read, 2 if it was written, 3 if both
    source: str  # of the last store
    ptx_line: int
    instruction: str


_WRITTEN = 2


@dataclass
class Emulation:
    """How launches are executed, and what came of them.

    Attributes:
        architecture: compute capability times ten.
        seed: 0 runs blocks and warps in turn; others shuffle them, stop warps anywhere (odd seeds) and let copies and
            products read memory as late as they may (seeds of remainder 0 and 1 by 4).
        rough: approximations err as far as the manual allows, tensor cores cut sums off, products and sums are fused.
        change: gives other PTX for a kernel's name and PTX.
        most_instructions: of a warp; one that needs more counts as a loop without end.
        findings: what went wrong, by launch.
        launches: in order.
    """

    architecture: int
    seed: int = 0
    rough: bool = False
    change: Callable[[str, str], str] | None = None
    most_instructions: int = 2**26
    findings: list[Finding] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    _reached: dict[str, Tensor] = field(default_factory=dict)
    _stored: dict[int, _Stored] = field(default_factory=dict)  # by address, the latest last

    def __post_init__(self) -> None:
        if self.architecture not in _SHARED_BYTES:
            known = ", ".join(map(str, _SHARED_BYTES))
            raise ValueError(f"architecture {self.architecture!r} isn't modelled; {known} are")
        for name, least in (("seed", 0), ("most_instructions", 1)):
            value = getattr(self, name)
            if not hasattr(value, "__index__") or not least <= value < 2**64:
                raise ValueError(f"{name} is a whole number from {least} to 2**64 - 1, not {value!r}")

    def report(self) -> str:
        """The findings, one for each kernel, kind and place in the source; empty where there are none."""
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.kernel, finding.kind, finding.source), []).append(finding)
        more = {
            place: f"\n  and {len(group) - 1} more there" if len(group) > 1 else "" for place, group in groups.items()
        }
        return "\n".join(f"{group[0]}{more[place]}" for place, group in groups.items())

    @contextlib.contextmanager
    def reaching(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Lets launches inside touch tensors that aren't arguments: kernels find them by addresses in memory."""
        named = {f"reached[{i}]": tensor for i, tensor in enumerate(tensors)}
        self._reached = dict(arguments.tensors_of(named, named.values()))
        try:
            yield
        finally:
            self._reached = {}

    def left_out(self, tensor: Tensor) -> list[Finding]:
        """What the last launch that stores to a tensor leaves out of it.

        Those are elements that it doesn't touch, floating ones only where they are NaN still, as empty memory is.
        """
        size = tensor.element_size()
        extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) * size + size
        for address, stored in reversed(self._stored.items()):
            offset = tensor.data_ptr() - address
            if not tensor.numel() or not 0 <= offset <= len(stored.touched) - extent:
                continue
            touched = torch.frombuffer(bytearray(stored.touched), dtype=torch.uint8)
            touched = touched.as_strided(tensor.shape, [stride * size for stride in tensor.stride()], offset)
            if not bool((touched & _WRITTEN).any()):
                continue
            missing = touched == 0
            if tensor.is_floating_point():
                missing &= tensor.detach().isnan()
            where = missing.nonzero()
            detail = f"{len(where)} of {tensor.numel()} elements, the first at {where[:1].flatten().tolist()}"
            place = stored.source, stored.ptx_line, stored.instruction
            return [Finding(stored.kernel, "elements left out", detail, *place)] if len(where) else []
        nothing = "no launch stores to the whole of the tensor"
        return [Finding("", "elements left out", nothing, "", 0, "")] if tensor.numel() else []


_kernels: dict[tuple[str, bool], Any] = {}


def _decoded(ptx: str, contracts: bool) -> Any:
    if (ptx, contracts) not in _kernels:
        _kernels[ptx, contracts] = Kernel(ptx, contracts=contracts)
    return _kernels[ptx, contracts]


class _Launcher:
    """Runs a compiled kernel in the emulation of the moment."""

    def __init__(self, source: Any, metadata: Any) -> None:
        if metadata.num_ctas != 1:
            raise NotImplementedError(f"{metadata.name}: clusters (num_ctas={metadata.num_ctas}) aren't modelled")
        if metadata.global_scratch_size:
            raise NotImplementedError(
                f"{metadata.name}: tensor descriptors made inside of a kernel aren't modelled for this architecture; "
                "pass a triton.tools.tensor_descriptor.TensorDescriptor"
            )
        self.source, self.metadata = source, metadata

    def __call__(self, *launch: Any) -> None:
        try:
            self._run(*launch)
        except ValueError as error:
            raise ValueError(f"{self.metadata.name}: {error}") from None

    def _run(self, *launch: Any) -> None:
        grid, (_, ptx, *_), values = launch[:3], launch[3:9], launch[9:]
        emulation = driver.active.emulation
        name, signature = self.metadata.name, self.source.signature
        if emulation.change is not None:
            ptx = emulation.change(name, ptx)
        if not all(hasattr(n, "__index__") and 0 <= n < 2**31 for n in grid):
            raise ValueError(f"a grid of {grid}: each is a whole number, 0 or more")
        tensors = dict(arguments.tensors_of(signature, values)) | emulation._reached
        kernel = _decoded(ptx, emulation.rough and self.metadata.enable_fp_fusion)
        descriptors = iter(getattr(self.metadata, "tensordesc_meta", None) or [])
        memory, addresses = arguments.place(tensors, emulation._reached)
        packed = arguments.pack(signature.values(), values, addresses, descriptors)
        packed += [bytes(8)] * (kernel.parameters - len(packed))  # addresses of scratch memory that it doesn't use
        start = time.perf_counter()
        report = kernel.run(
            grid=grid, warps=self.metadata.num_warps, dynamic_shared=self.metadata.shared, arguments=packed,
            memory=memory, seed=emulation.seed, preempts=emulation.seed % 2 == 1,
            late=emulation.seed > 0 and emulation.seed % 4 < 2, rough=emulation.rough,
            most_instructions=emulation.most_instructions,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        executed = frozenset(report["executed_lines"])
        emulation.launches.append(Launch(name, grid, ptx, seconds, report["lane_instructions"], executed))
        for seen, location, touched in report["memory"]:
            if location is not None:
                address = arguments.own_address(seen)
                emulation._stored.pop(address, None)
                emulation._stored[address] = _Stored(name, list(tensors.values()), touched, *location)
        emulation.findings += [Finding(name, *finding) for finding in report["findings"]]


class _Driver:
    """Stands in for a GPU. Its number is the architecture: Triton keeps what it compiled by device."""

    launcher_cls = _Launcher

    def __init__(self, emulation: Emulation) -> None:
        self.emulation = emulation
        shared = _SHARED_BYTES[emulation.architecture]
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, *_: (name, binary.decode(), 0, 0, _THREADS),
            get_device_properties=lambda _: {"max_shared_mem": shared},
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.emulation.architecture, 32)

    def get_current_device(self) -> int:
        return self.emulation.architecture

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        return _run_once

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _run_once(launch: Callable[[], object], quantiles: Sequence[float], **_: object) -> list[float]:
    """What an autotuner measures by: every configuration runs, and all are as fast."""
    launch()
    return [0.0] * len(quantiles)


def _keep_ptx(*compiling: Any) -> tuple[str, str] | None:
    """Triton's hook into its stages: the binary is the PTX itself. Asked for its own name, without arguments."""
    if not compiling:
        return "ptx_emulator", "ptx_emulator"
    _, stages, *_ = compiling
    stages["cubin"] = lambda ptx, _: ptx.encode()
    return None


@contextlib.contextmanager
def emulating(architecture: int, **settings: Any) -> Iterator[Emulation]:
    """Launches inside run on the CPU, on its tensors, as compiled for an architecture; PyTorch's empty memory is NaN.

    Args:
        architecture: 80, 86, 89 or 90.
        settings: `seed`, `rough`, `change` and `most_instructions` of Emulation.

    Raises:
        ValueError: an architecture that isn't modelled, or a setting out of its range.
        RuntimeError: Triton's interpreter is on, which takes kernels before they are compiled.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 is set: nothing is compiled, so that nothing could be emulated")
    emulation = Emulation(architecture, **settings)
    before = driver._active, knobs.runtime.add_stages_inspection_hook, knobs.cache.dir
    deterministic, filling = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    fills = filling.fill_uninitialized_memory
    driver.set_active(_Driver(emulation))
    knobs.runtime.add_stages_inspection_hook = _keep_ptx
    knobs.cache.dir = str(BUILD / "triton")
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = True
    try:
        yield emulation
    finally:
        driver._active, knobs.runtime.add_stages_inspection_hook, knobs.cache.dir = before
        torch.use_deterministic_algorithms(deterministic)
        filling.fill_uninitialized_memory = fills
