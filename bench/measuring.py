"""What a case of the benchmarks is: one operation, its inputs, its contestants, and the least work it has to do."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import vikhr_kernels
from vikhr_kernels import reference

Inputs = dict[str, Any]
Forward = Callable[[Inputs], Any]
Run = Callable[[Inputs], tuple[Tensor, ...]]  # outputs, gradients, or outputs and then gradients
What = Literal["forward", "backward", "both"]


@dataclass(frozen=True)
class Sizes:
    """Shapes of a model, and the sizes that are measured."""

    hidden: int = 4096
    intermediate: int = 14336
    vocabulary: int = 40000
    heads: int = 32
    key_heads: int = 8
    head_size: int = 128
    tokens: tuple[int, ...] = (1024, 3072, 8192, 16384)
    parameters: tuple[int, ...] = (50_000, 200_000)  # thousands, of adamw
    attention_tokens: int = 16384  # of a batch
    lengths: tuple[int, ...] = (1024, 4096, 16384)  # of sequences and of windows
    means: tuple[int, ...] = (100, 400, 1600)  # of the lengths of documents

    @classmethod
    def tiny(cls) -> "Sizes":
        """For a machine without a GPU: every path, no meaning in the times."""
        return cls(64, 96, 211, 4, 2, 16, (3, 8), (2,), 24, (6, 12), (4,))


@dataclass(frozen=True)
class Case:
    """One operation to measure.

    Attributes:
        kernel: its name.
        make: inputs for a size; those that require gradients are differentiated by.
        by: its forward pass by an implementation, `vikhr_kernels` or `vikhr_kernels.reference`.
        sizes: what `make` is called with.
        peers: other implementations, by name; each is made when it is wanted, which raises ImportError without it.
        traffic: bytes that have to be moved at a size; None where matrix products are the work.
        flops: of its matrix products, likewise.
        what: which passes are measured.
        axis: what a size is.
        compiles: whether torch.compile of the reference is a contestant.
        eager_sizes: at which the reference is measured; None is all.
        make_checked: inputs for the comparison with float64; None are those of the smallest size.
        vectors: how many vectors, an element a token, follow the first output, which is the mean of their sum. One
            number's error is luck; it is judged by what theirs may be. Peers don't give them.
    """

    kernel: str
    make: Callable[[int, torch.device, torch.dtype], Inputs]
    by: Callable[[Any], Forward]
    sizes: tuple[int, ...]
    peers: dict[str, Callable[[], Run]] = dataclasses.field(default_factory=dict)
    traffic: Callable[[int], int] | None = None
    flops: Callable[[int], int] | None = None
    what: What = "both"
    axis: str = "tokens"
    compiles: bool = True
    eager_sizes: tuple[int, ...] | None = None
    make_checked: Callable[[torch.device, torch.dtype], Inputs] | None = None
    vectors: int = 0

    @property
    def ours(self) -> Run:
        """The kernels."""
        return measured(self.what, self.by(vikhr_kernels))

    @property
    def eager(self) -> Run:
        """The reference."""
        return measured(self.what, self.by(reference))

    def compiled(self, backend: str) -> Run:
        """The reference as torch.compile makes it, its backward pass with it."""
        return measured(self.what, torch.compile(self.by(reference), backend=backend, dynamic=False))

    def checked(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Inputs for the comparison with float64."""
        return self.make_checked(device, dtype) if self.make_checked else self.make(self.sizes[0], device, dtype)


def measured(what: What, forward: Forward) -> Run:
    """The passes of an operation that are measured."""
    return {"forward": forward_alone, "backward": backward_alone, "both": forward_and_backward}[what](forward)


def forward_alone(f: Forward) -> Run:
    """The outputs of f."""

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs = f(inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run


def backward_alone(f: Forward) -> Run:
    """The gradients of f; the forward pass is made once for the inputs, which keep its graph."""

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        if "graph" not in inputs:
            inputs["graph"] = f(inputs), [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        output, leaves = inputs["graph"]
        return torch.autograd.grad(output, leaves, inputs["upstream"], retain_graph=True)

    return run


def forward_and_backward(f: Forward) -> Run:
    """The outputs of f and its gradients, by the upstream gradients among the inputs."""

    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        outputs = f(inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        upstream = inputs.get("upstream")
        return *outputs, *torch.autograd.grad(outputs[: len(upstream)] if upstream else outputs[0], leaves, upstream)

    return run
