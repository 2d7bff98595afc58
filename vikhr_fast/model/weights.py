"""Safetensors directories in the layout of Hugging Face: one file, or numbered shards with an index."""

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_file, json_text, write_json
from vikhr_fast.io.guarded import read_json

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MAX_SHARD_BYTES = 5_000_000_000
_CHECKED_AT_ONCE = 1 << 20  # numbers
_MOST_NUMBERS = 1 << 48  # of a tensor

# Quantised weights are refused: their numbers mean nothing without their scales.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SHARD_NAME = re.compile(r"[^/\0\ud800-\udfff]+\.safetensors")
# Llama-2's files hold what follows from rope_theta; transformers makes it anew, too.
_BUFFER = re.compile(r".*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)")


class WeightFiles:
    """The tensors of a directory: found, described and checked, but not read.

    Opening reads only the index and the headers.

    Attributes:
        tensors: by name, without values, on "meta": shapes and dtypes as stored.
        ignored: names of stored tensors that are no weights: the angles of rotary embeddings.

    Raises:
        InputError: one line that names every missing file, damaged file, and tensor that is not where the index says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tensors: dict[str, Tensor] = {}
        self.ignored: list[str] = []
        self._files: dict[str, Path] = {}
        if (directory / WEIGHTS_NAME).exists():
            shards: dict[str, set[str] | None] = {WEIGHTS_NAME: None}
        elif (directory / INDEX_NAME).exists():
            places = _read_index(directory / INDEX_NAME)
            names: dict[str, set[str]] = {}
            for name, shard in sorted(places.items(), key=itemgetter(1)):
                names.setdefault(shard, set()).add(name)
            shards = {**names}
        else:
            raise InputError(f"{directory}: neither {WEIGHTS_NAME} nor {INDEX_NAME}; only safetensors are read")
        if problems := [one for shard, names in shards.items() for one in self._describe(directory / shard, names)]:
            raise InputError("; ".join(problems))

    def _describe(self, file: Path, indexed: set[str] | None) -> Iterator[str]:
        """Takes in the header of a file, which must hold the tensors that the index says; yields what is wrong."""
        try:
            with _opened(file) as opened:
                stored = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
                headers = {name: (part.get_shape(), part.get_dtype()) for name, part in stored.items()}
        except InputError as error:
            yield str(error)
            return
        wanted = headers.keys() if indexed is None else indexed
        for name in sorted(wanted - headers.keys()):
            yield f"{file}: {name}: missing, but {INDEX_NAME} places it here"
        for name in sorted(headers.keys() - wanted):
            yield f"{file}: {name}: here, but not according to {INDEX_NAME}"
        for name, (shape, dtype) in headers.items():
            if _BUFFER.fullmatch(name):
                self.ignored.append(name)
                continue
            if math.prod(filter(None, shape)) > _MOST_NUMBERS:  # an empty tensor may have any shape
                yield f"{file}: {name}: shape is {shape}, which is beyond any model's"
                continue
            if dtype not in _DTYPES:
                yield f"{file}: {name}: dtype is {dtype}, only {', '.join(_DTYPES)} are read"
            self.tensors[name] = torch.empty(shape, dtype=_DTYPES.get(dtype), device="meta")
            self._files[name] = file

    def require_layers(self, count: int) -> None:
        """Raises InputError where there cannot be so many layers here, each of which has a tensor at least."""
        if count > len(self.tensors):
            reason = f"num_hidden_layers is {count:,}, but there are only {len(self.tensors):,} tensors"
            raise InputError(f"{self.directory}: the weights do not fit config.json: {reason}")

    def require(self, expected: Mapping[str, Tensor], *, alone: bool = True) -> None:
        """Raises one InputError that names every missing, wrongly shaped and, if `alone`, unexpected tensor."""
        problems = [f"{name}: missing" for name in expected if name not in self.tensors]
        problems += [f"{name}: unexpected" for name in self.tensors if alone and name not in expected]
        problems += [
            f"{name}: shape is {list(self.tensors[name].shape)}, must be {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in self.tensors and self.tensors[name].shape != tensor.shape
        ]
        if problems:
            raise InputError(f"{self.directory}: the weights do not fit config.json: {'; '.join(problems)}")

    def has_own_head(self) -> bool:
        """Whether there is an LM head that isn't the embedding matrix: a tied model may hold that twice."""
        if not {EMBEDDING, HEAD} <= self.tensors.keys():
            return HEAD in self.tensors
        head, embedding = self.read(HEAD), self.read(EMBEDDING)
        return head.dtype != embedding.dtype or not torch.equal(head, embedding)

    def leave_out_tied_head(self) -> None:
        """Reads over the LM head of a tied model, where there is one.

        Raises:
            InputError: it isn't the embedding matrix.
        """
        if self.has_own_head():
            raise InputError(
                f"{self.directory}: {HEAD}: config.json says that the head is tied, but one is stored that isn't the "
                "embedding matrix; `vikhr-fast adapt --untie-head` keeps it, or delete it from the weights"
            )
        self.tensors.pop(HEAD, None)

    def read(self, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Reads one tensor into memory of its own, as stored by default.

        The file is opened anew for each tensor: an open one is a memory map whose touched pages would add up to
        a second copy of the weights.
        """
        with _opened(self._files[name]) as opened:
            stored: Tensor = opened.get_tensor(name)
            return stored.to(device=device, dtype=dtype or stored.dtype, copy=True)

    def read_finite(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """As `read`; InputError where a number of it is NaN or infinite."""
        tensor = self.read(name, dtype)
        if broken := sum(int((~torch.isfinite(part)).sum()) for part in tensor.view(-1).split(_CHECKED_AT_ONCE)):
            raise InputError(
                f"{self._files[name]}: {name}: {broken} of {tensor.numel()} numbers are NaN or infinite; "
                "copy the file again, or use a model without them"
            )
        return tensor


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except FileNotFoundError:
        raise InputError(f"{file}: no such file, but {INDEX_NAME} names it") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; copy it again") from None
    except SafetensorError as error:
        raise InputError(f"{file}: damaged or cut short: {error}; copy it again") from None


def _read_index(path: Path) -> dict[str, str]:
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{path}: weight_map: must be an object of tensor names and file names")
    for name, shard in places.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise InputError(f"{path}: weight_map: {name}: {json_text(shard)} is not the name of a file beside it")
    return places


def write_weights(
    directory: Path,
    tensors: Mapping[str, Tensor],
    value_of: Callable[[str], Tensor | Iterable[Tensor]] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes tensors as safetensors, one by one. A file appears when it is complete; one that is there is left alone.

    Args:
        directory: an existing one; files in it must be of an earlier call with the same arguments.
        tensors: the shape and dtype of each by its name; on "meta" where `value_of` gives the values.
        value_of: gives the tensor of a name, or its rows in blocks, of any dtype and on any device. It is asked in the
            order of `tensors`, and for one after another.
        max_shard_bytes: a shard ends before it would grow past this; one larger tensor is a shard alone.
    """
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(own.nbytes for own in shards[-1].values()) + tensor.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WEIGHTS_NAME
        places |= dict.fromkeys(shard, file_name)
        if (directory / file_name).exists():
            logger.info(f"{directory / file_name}: done before")
        else:
            with atomic_file(directory / file_name) as file:
                _write_shard(file, shard, value_of or tensors.__getitem__)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(directory / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": places})


def _write_shard(
    file: IO[bytes], shard: Mapping[str, Tensor], value_of: Callable[[str], Tensor | Iterable[Tensor]]
) -> None:
    """As `safetensors.torch.save_file` writes a file, which would need all tensors at once.

    The format: the length of the header as a uint64, the header, the tensors without gaps.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4 reads no file without it
    end = 0
    for name in sorted(shard, key=lambda name: (-shard[name].itemsize, name)):  # all are aligned then
        start, end = end, end + shard[name].nbytes
        dtype, shape = _DTYPE_NAMES[shard[name].dtype], list(shard[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    encoded = json_text(header, ensure_ascii=True, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for name, tensor in shard.items():
        start, end = (8 + len(encoded) + offset for offset in header[name]["data_offsets"])
        file.seek(start)
        _write_rows(file, value_of(name), tensor.dtype)
        if file.tell() != end:
            raise ValueError(f"{name}: its value has not the shape {list(tensor.shape)}")


def _write_rows(file: IO[bytes], value: Tensor | Iterable[Tensor], dtype: torch.dtype) -> None:
    for rows in [value] if isinstance(value, Tensor) else value:
        stored = rows.detach().to(device="cpu", dtype=dtype).contiguous()
        file.write(stored.view(-1).view(torch.uint8).numpy().data)
