"""Which tiles the kernels of flash attention run with, by architecture, dtype, head size and length of documents.

The length is a word, said by whoever knows the documents and never looked for on the device; a wrong one costs time.
The table is checked in; `python -m vikhr_kernels.tune` measures its neighbours on the GPU at hand and keeps the fastest
in the user's cache, which goes first.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vikhr_kernels.dispatch import architecture_of


@dataclass(frozen=True)
class AttentionConfiguration:
    """How one kernel of flash attention is launched.

    Attributes:
        head_size: elements of a head, which it is for.
        queries: tokens of a tile of queries.
        keys: tokens of a tile of keys.
        num_warps: warps of a program.
        num_stages: tiles in flight in a loop.
        descriptors: tiles are loaded by Hopper's copy engine and not through pointers.
        parts: 1, or 2 where the elements of a head are loaded and multiplied as two halves, see `gpu.tiles`.
    """

    head_size: int
    queries: int
    keys: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    parts: int = 1

    @property
    def tile(self) -> str:
        """What a program holds at once, in words."""
        loaded = "descriptors" if self.descriptors else "pointers"
        halves = ", in halves" if self.parts == 2 else ""
        return f"{self.queries}x{self.keys}, {self.num_stages} stages, {loaded}{halves}"

    @property
    def constants(self) -> dict[str, Any]:
        """What this decides of a launch's keyword arguments."""
        return {
            "QUERIES": self.queries,
            "KEYS": self.keys,
            "PARTS": self.parts,
            "DESCRIPTORS": self.descriptors,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


Length = Literal["short", "long"]
LENGTHS: tuple[Length, ...] = ("short", "long")
# Keys that a query of long documents sees, on average. On an H100 small tiles are faster up to 1,150 forward and 1,000
# for dQ: where straight lines through the times at 512 and at 8,192 cross.
LONG = 1024

Entries = dict[tuple[int, Length], AttentionConfiguration]  # by head size
HEAD_SIZES = (64, 128)
KERNELS = (
    "flash_attention_forward_kernel",
    "flash_attention_query_gradient_kernel",
    "flash_attention_key_gradient_kernel",
)


def length_of(pairs: float) -> Length:
    """Which of the two documents are whose queries see so many keys on average."""
    return "long" if pairs >= LONG else "short"


def seen_pairs(tokens: int, window: int | None = None) -> int:
    """Pairs of a query and a key that it sees, in a document of so many tokens."""
    short = tokens if window is None else min(tokens, window)
    return short * (short + 1) // 2 + (tokens - short) * short


def _always(configuration: AttentionConfiguration) -> Entries:
    return {(configuration.head_size, length): configuration for length in LENGTHS}


def _by_length(short: AttentionConfiguration, long: AttentionConfiguration) -> Entries:
    return {(short.head_size, "short"): short, (long.head_size, "long"): long}


def _table(*entries: Entries) -> dict[str, dict[torch.dtype, Entries]]:
    # float32 is for tests of models: right, but slow.
    slow = _always(_At(64, 32, 32, num_warps=8, num_stages=1)) | _always(_At(128, 32, 32, num_warps=8, num_stages=1))
    return {
        kernel: {torch.bfloat16: fast, torch.float16: fast, torch.float32: slow}
        for kernel, fast in zip(KERNELS, entries, strict=True)
    }


_At = AttentionConfiguration

# As measured fastest, sm_80's on an H100 that ran its code; those of 64 elements a head by their machine code.
TABLE: dict[int, dict[str, dict[torch.dtype, Entries]]] = {
    80: _table(
        _always(_At(64, 128, 64, 8, 3)) | _always(_At(128, 128, 32, 4, 3, parts=2)),
        _always(_At(64, 128, 64, 8, 2)) | _always(_At(128, 64, 64, 4, 2, parts=2)),
        _always(_At(64, 64, 128, 8, 2)) | _always(_At(128, 64, 64, 4, 2, parts=2)),
    ),
    90: _table(
        _always(_At(64, 128, 128, 8, 3, True))
        | _by_length(_At(128, 64, 64, 4, 2, True), _At(128, 128, 128, 8, 3, True)),
        _always(_At(64, 128, 64, 8, 3, True)) | _by_length(_At(128, 64, 64, 4, 2, True), _At(128, 128, 64, 8, 3, True)),
        _always(_At(64, 64, 128, 8, 3, True)) | _always(_At(128, 64, 128, 8, 3, True)),
    ),
}


def choose(
    kernel: str, dtype: torch.dtype, device: torch.device, head_size: int, length: Length
) -> AttentionConfiguration:
    """The configuration that `kernel` runs with: as forced, as tuned on this GPU, or the table's.

    The head size is one of HEAD_SIZES.
    """
    if kernel in _forced:
        return _forced[kernel]
    tuned = _tuned(device) if device.type == "cuda" else {}
    found = tuned.get((kernel, str(dtype), head_size, length))
    return found or TABLE[architecture_of(device)][kernel][dtype][head_size, length]


_forced: dict[str, AttentionConfiguration] = {}


@contextlib.contextmanager
def forcing(kernel: str, configuration: AttentionConfiguration) -> Iterator[None]:
    """Makes `kernel` run with this configuration, whatever the table says."""
    _forced[kernel] = configuration
    try:
        yield
    finally:
        del _forced[kernel]


Tuned = dict[tuple[str, str, int, Length], AttentionConfiguration]  # by kernel, dtype, head size and length


def tuned_file(gpu: str, architecture: int) -> Path:
    """Where the configurations tuned on GPUs of this name are kept; measured beside others they would be others."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    gpu_sources = Path(__file__).parent / "gpu"
    sources = [Path(__file__), gpu_sources / "tiles.py", *sorted(gpu_sources.glob("flash_attention*.py"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    name = "".join(letter if letter.isalnum() else "-" for letter in gpu)
    return (
        cache / "vikhr_kernels" / f"{name}-sm{architecture}-triton{importlib.metadata.version('triton')}-{digest}.json"
    )


def write_tuned(gpu: str, architecture: int, tuned: Tuned) -> Path:
    """Keeps configurations for GPUs of this name; the file is written beside and renamed."""
    file = tuned_file(gpu, architecture)
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {"kernel": kernel, "dtype": dtype, "length": length, **asdict(chosen)}
        for (kernel, dtype, _, length), chosen in tuned.items()
    ]
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)
    _tuned.cache_clear()
    return file


def read_tuned(gpu: str, architecture: int) -> Tuned:
    """What was tuned on GPUs of this name; empty where nothing was.

    Raises:
        ValueError: the file is damaged; it is named.
    """
    file = tuned_file(gpu, architecture)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {
            (entry.pop("kernel"), entry.pop("dtype"), entry["head_size"], entry.pop("length")): _At(**entry)
            for entry in entries
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: damaged ({error!r}); delete it, or run python -m vikhr_kernels.tune again") from None


@functools.cache
def _tuned(device: torch.device) -> Tuned:
    return read_tuned(torch.cuda.get_device_name(device), architecture_of(device))
