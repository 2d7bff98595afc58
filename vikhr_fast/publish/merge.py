"""Merges two models of one shape and vocabulary, tensor by tensor: spherically, as mergekit does, or linearly."""

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory
from vikhr_fast.model.config import CONFIG_NAME, ModelConfig, read_config, write_config
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.model.weights import write_weights
from vikhr_fast.tokenizer.files import companions
from vikhr_fast.tokenizer.load import same_tokenizer

_PARALLEL = 0.9995  # cosine from which two tensors are interpolated linearly, mergekit's
_TINY = 1e-8  # norm up to which a tensor has no direction
_ADVICE = {
    "vocab_size": "added tokens or padding: adapt both to one vocabulary with the same --pad-to-multiple",
    "tie_word_embeddings": "`vikhr-fast adapt --untie-head` parts a tied one",
}
# What the weights' meaning doesn't depend on: a Llama computes as a Mistral without a window.
_MAY_DIFFER = ("model_type", "initializer_range", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Merge:
    """Interpolates between the weights of two models, one tensor at a time."""

    first: Path
    """Hugging Face directory; its tokenizer and its model_type, llama or mistral, go with the result."""
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
    config, other = read_config(options.first), read_config(options.second)
    differing = [name for name, value in asdict(config).items() if getattr(other, name) != value]
    if problems := [_difference(name, options.first, config, other) for name in differing if name not in _MAY_DIFFER]:
        raise InputError(f"{options.second / CONFIG_NAME}: {'; '.join(problems)}")
    if config.model_type != other.model_type:
        logger.info(f"{options.output}: a {config.model_type} as {options.first}, though {options.second} is none")
    first, second = (Mistral.without_values(directory)[1] for directory in (options.first, options.second))
    if same_tokenizer(options.first, options.second) is False:
        raise InputError(f"{options.second}: another tokenizer than {options.first}'s; the models' rows don't match")
    combine = slerp if options.method == "slerp" else torch.lerp

    def merged(name: str) -> Tensor:
        a, b = (files.read_finite(name, torch.float32) for files in (first, second))
        return combine(a, b, options.factor)

    with atomic_directory(options.output) as temporary:
        write_config(temporary, config, next(iter(first.tensors.values())).dtype)
        write_weights(temporary, first.tensors, merged)
        for path in companions(options.first):
            shutil.copyfile(path, temporary / path.name)


def _difference(name: str, first: Path, config: ModelConfig, other: ModelConfig) -> str:
    text = f"{name} is {getattr(other, name)}, but {getattr(config, name)} in {first}"
    return f"{text} ({_ADVICE[name]})" if name in _ADVICE else text


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
