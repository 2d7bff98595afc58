"""Merges two models of one shape and vocabulary, tensor by tensor: spherically, as mergekit does, or linearly."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import atomic_directory
from vikhr_fast.model.config import CONFIG_NAME, read_config, write_config
from vikhr_fast.model.weights import WeightFiles, write_weights
from vikhr_fast.tokenizer.files import companions, same_tokenizer

_PARALLEL = 0.9995  # cosine from which two tensors are interpolated linearly, mergekit's
_TINY = 1e-8  # norm up to which a tensor has no direction
_ALIKE = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta")  # what equal weights mean


@dataclass(frozen=True)
class Merge:
    """Interpolates between the weights of two models, one tensor at a time."""

    first: Path
    """Hugging Face directory; its tokenizer goes with the result."""
    second: Path
    """Another of the same shape and vocabulary."""
    output: Path
    """Directory to be made."""
    method: Literal["slerp", "linear"] = "slerp"
    """slerp keeps the length of a tensor where its direction turns."""
    factor: float = 0.5
    """0 is the first model, 1 the second."""


def merge(options: Merge) -> None:
    """Writes the merged model: complete or absent; memory: three tensors.

    Raises:
        InputError: the models don't fit each other, or an option is impossible.
    """
    if not 0 <= options.factor <= 1:
        raise InputError(f"merge: factor: {options.factor}, must be between 0 and 1")
    first, second = WeightFiles(options.first), WeightFiles(options.second)
    second.require(first.tensors)
    config, other = read_config(options.first), read_config(options.second)
    for name in _ALIKE:
        if (own := getattr(other, name)) != (wanted := getattr(config, name)):
            raise InputError(f"{options.second / CONFIG_NAME}: {name} is {own}, but {wanted} in {options.first}")
    if same_tokenizer(options.first, options.second) is False:
        raise InputError(f"{options.second}: another tokenizer than {options.first}'s; the models' rows don't match")
    combine = slerp if options.method == "slerp" else torch.lerp

    def merged(name: str) -> Tensor:
        a, b = (files.read(name, torch.float32) for files in (first, second))
        return combine(a, b, options.factor)

    with atomic_directory(options.output) as temporary:
        write_config(temporary, config, next(iter(first.tensors.values())).dtype)
        write_weights(temporary, first.tensors, merged)
        for path in companions(options.first):
            shutil.copyfile(path, temporary / path.name)


def slerp(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """Spherical interpolation between two tensors, each taken as one vector (Shoemake 1985; mergekit's `slerp`).

    sin((1-t)Ω)/sinΩ · a + sin(tΩ)/sinΩ · b with Ω the angle between them; linear where they are nearly parallel.
    """
    cosine = float(torch.sum(_direction(a) * _direction(b)))
    if abs(cosine) > _PARALLEL:
        return torch.lerp(a, b, factor)
    angle = math.acos(cosine)
    return (math.sin((1 - factor) * angle) * a + math.sin(factor * angle) * b) / math.sin(angle)


def _direction(x: Tensor) -> Tensor:
    wide = x.double()
    norm = wide.norm()
    return wide / norm if float(norm) > _TINY else wide
