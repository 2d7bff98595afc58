"""Safetensors directories in the layout of Hugging Face: one file, or numbered shards with an index."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vikhr_fast.errors import InputError
from vikhr_fast.files import write_text
from vikhr_fast.model_config import read_json_object

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000

# Quantised weights are refused: their numbers mean nothing without their scales.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightFiles:
    """The tensors of a directory: found, described and checked, but not read.

    Opening reads only the index and the headers.

    Attributes:
        shapes: the shape of each tensor.
        dtypes: its dtype as stored.

    Raises:
        InputError: one line that names every missing file, damaged file, and tensor that is not where the index says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._files: dict[str, Path] = {}
        problems: list[str] = []
        single = directory / WEIGHTS_NAME
        if single.exists():
            self._describe(single, None, problems)
        elif (directory / INDEX_NAME).exists():
            places = _read_index(directory / INDEX_NAME)
            for shard in sorted(set(places.values())):
                self._describe(directory / shard, {name for name in places if places[name] == shard}, problems)
        else:
            raise InputError(f"{directory}: neither {WEIGHTS_NAME} nor {INDEX_NAME}; only safetensors are read")
        if problems:
            raise InputError("; ".join(problems))

    def _describe(self, file: Path, indexed: set[str] | None, problems: list[str]) -> None:
        """Takes in the header of one file, which must hold exactly the tensors that the index says."""
        try:
            with safe_open(file, framework="pt") as opened:
                found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
                shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
                dtypes = {name: part.get_dtype() for name, part in found.items()}
        except FileNotFoundError:
            problems.append(f"{file}: no such file, but {INDEX_NAME} names it")
            return
        except SafetensorError as error:
            problems.append(f"{file}: damaged or cut short: {error}; copy it again")
            return
        if indexed is not None:
            absent, strange = sorted(indexed - shapes.keys()), sorted(shapes.keys() - indexed)
            problems += [f"{file}: {name}: missing, but {INDEX_NAME} places it here" for name in absent]
            problems += [f"{file}: {name}: here, but not according to {INDEX_NAME}" for name in strange]
        for name, dtype in dtypes.items():
            if dtype not in _DTYPES:
                problems.append(f"{file}: {name}: dtype is {dtype}, only {', '.join(_DTYPES)} are read")
                continue
            self.shapes[name], self.dtypes[name], self._files[name] = shapes[name], _DTYPES[dtype], file

    def require(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises one InputError that names every missing, unexpected and wrongly shaped tensor."""
        missing = [f"{name}: missing" for name in expected if name not in self.shapes]
        unexpected = [f"{name}: unexpected" for name in self.shapes if name not in expected]
        shaped = [
            f"{name}: shape is {list(self.shapes[name])}, must be {list(shape)}"
            for name, shape in expected.items()
            if name in self.shapes and self.shapes[name] != shape
        ]
        if problems := missing + unexpected + shaped:
            raise InputError(f"{self.directory}: the weights do not fit config.json: {'; '.join(problems)}")

    def read(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Reads one tensor into memory of its own.

        The file is opened anew for each tensor: an open one is a memory map whose touched pages would add up to
        a second copy of the weights.
        """
        with safe_open(self._files[name], framework="pt") as opened:
            stored: Tensor = opened.get_tensor(name)
            return stored.to(device=device, dtype=dtype, copy=True)


def _read_index(path: Path) -> dict[str, str]:
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{path}: weight_map: must be an object of tensor names and file names")
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"{path}: weight_map: {name}: {json.dumps(shard)} is not the name of a file beside it")
    return places


def write_weights(
    directory: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes tensors as safetensors, taking them one by one and holding no more than one shard.

    Args:
        directory: an existing directory; make it with `atomic_directory`, this function is not atomic.
        tensors: names and values, in the order to be written; a value may live on any device.
        max_shard_bytes: a shard is closed before it would grow past this; one larger tensor is a shard alone.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0

    def close_shard() -> None:
        try:
            save_file(pending, directory / f"{len(shards)}.part", metadata={"format": "pt"})
        except SafetensorError as error:  # its only word about a full disk
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from None
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            close_shard()
            pending_bytes = 0
        pending[name] = tensor
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    close_shard()

    if len(shards) == 1:
        (directory / "0.part").rename(directory / WEIGHTS_NAME)
        return
    weight_map = {}
    for number, names in enumerate(shards):  # the file names need the count, known only now
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{number}.part").rename(directory / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_text(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")
