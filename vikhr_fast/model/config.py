"""The shape of a Mistral or Llama model, and its config.json as Hugging Face writes it."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import write_json
from vikhr_fast.io.guarded import read_json

CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a Mistral model (arXiv 2310.06825); names are those of Hugging Face's config.json.

    A Llama is one without a window; `model_type` is what a model is called, and nothing is computed by it.
    `tie_word_embeddings`: the embedding matrix is the LM head, too. `sliding_window` counts visible positions, the
    token itself included; None is unlimited.

    Raises:
        InputError: one line that names every invalid field.
    """

    model_type: Literal["mistral", "llama"] = "mistral"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __post_init__(self) -> None:
        if problems := _invalid_fields(asdict(self)):
            raise InputError(f"model configuration: {'; '.join(problems)}")


def _is_integer(value: object, minimum: int, maximum: float = math.inf) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


# Beyond any model's; the number of elements that follows from these fits into 64 bits.
_MOST_SIZE, _MOST_LAYERS, _MOST_WINDOW = 1 << 24, 1 << 12, (1 << 31) - 1
_SIZE = (lambda value: _is_integer(value, 1, _MOST_SIZE), f"a positive integer, {_MOST_SIZE:,} at most")
_LAYERS = (lambda value: _is_integer(value, 1, _MOST_LAYERS), f"a positive integer, {_MOST_LAYERS:,} at most")
_WINDOW = (lambda value: value is None or _is_integer(value, 1, _MOST_WINDOW), "a positive integer, or null for none")
_POSITIVE = (lambda value: _is_number(value) and value > 0, "a positive number")
_TOKEN = (lambda value: value is None or _is_integer(value, 0), "one token id, or null for none")
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
_ARCHITECTURES = {"mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM"}
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_type": (lambda value: value in ("mistral", "llama"), '"mistral" or "llama"'),
    **dict.fromkeys(_SIZES, _SIZE),
    "num_hidden_layers": _LAYERS,
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), _POSITIVE),
    "sliding_window": _WINDOW,
    "tie_word_embeddings": (lambda value: isinstance(value, bool), "true or false"),
    "initializer_range": (lambda value: _is_number(value) and value >= 0, "a number that is not negative"),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), _TOKEN),
}
_show = json.JSONEncoder(default=str).encode  # for messages, which may say NaN


def _invalid_fields(values: Mapping[str, Any]) -> list[str]:
    """One complaint for each of the given fields that is invalid; fields that are not given are not judged."""
    wanted = {name: text for name, (holds, text) in _RULES.items() if name in values and not holds(values[name])}
    sound = {name: value for name, value in values.items() if name not in wanted}
    if sound.get("head_dim", 0) % 2:
        wanted["head_dim"] = "even, because rotary embeddings turn pairs"
    heads, key_value_heads = sound.get("num_attention_heads"), sound.get("num_key_value_heads")
    if heads and key_value_heads and heads % key_value_heads:
        wanted["num_key_value_heads"] = f"a divisor of num_attention_heads ({heads})"
    if sound.get("model_type") == "llama" and sound.get("sliding_window") is not None:
        wanted["sliding_window"] = "null, because a Llama has none"
    for name in ("bos_token_id", "eos_token_id"):
        if sound.get(name) is not None and sound[name] >= sound.get("vocab_size", math.inf):
            wanted[name] = f"below vocab_size ({sound['vocab_size']})"
    return [f"{name} is {_show(values[name])}, must be {text}" for name, text in wanted.items()]


# Settings that change the computation and have one supported value, which is also what their absence means.
_ONLY = {"hidden_act": "silu", "attention_dropout": 0.0, "attention_bias": False}
_ONLY_OF_LLAMA = {"mlp_bias": False}
# Fields that a config.json may leave out, because every reader agrees on what that means.
_DEFAULTS = {"initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA_DEFAULTS = {"rope_theta": 10000.0}  # which Llama-2's own config.json leaves out


def read_config(directory: Path) -> ModelConfig:
    """Reads `config.json` of a Hugging Face directory of a Mistral, or of a Llama without scaled rope.

    Raises:
        InputError: one line that names the file and everything in it that is missing, invalid or not supported.
    """
    path = directory / CONFIG_NAME
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in ("mistral", "llama"):
        advice = "choose a base of one of these types"
        raise InputError(f'{path}: model_type is {_show(kind)}, only "mistral" and "llama" are supported; {advice}')
    problems = _settle_rope(values)
    if kind == "llama":  # transformers reads over a window that stands there all the same
        values = _LLAMA_DEFAULTS | values | {"sliding_window": None}
    values = _DEFAULTS | values
    for name, only in _only_values(kind).items():
        value = values.get(name, only)
        if value != only and (value is not None or only):  # null is none
            problems.append(f"{name} is {_show(value)}, only {_show(only)} is supported")
    if values.get("tie_word_embeddings") is None:
        values["tie_word_embeddings"] = False
    if values.get("head_dim") is None:
        values.pop("head_dim", None)
        hidden_size, heads = values.get("hidden_size"), values.get("num_attention_heads")
        if _is_integer(hidden_size, 1) and _is_integer(heads, 1) and hidden_size % heads == 0:
            values["head_dim"] = hidden_size // heads  # as Mistral-7B's own config.json means it
    given = {name: values[name] for name in _RULES if name in values}
    problems += [f"{name} is missing" for name in _RULES if name not in given]
    problems += _invalid_fields(given)
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}")
    return ModelConfig(**given)


def _only_values(model_type: str) -> dict[str, Any]:
    return _ONLY | (_ONLY_OF_LLAMA if model_type == "llama" else {})


# How files spell that rope is not scaled.
_UNSCALED = ({"rope_type": "default"}, {"type": "default"}, {"rope_type": "default", "type": "default"})


def _settle_rope(values: dict[str, Any]) -> list[str]:
    """Sets `rope_theta` from whichever of the two spellings is there; returns what is not supported."""
    problems = []
    scaling, parameters = values.get("rope_scaling"), values.get("rope_parameters")
    if scaling is not None and scaling not in _UNSCALED:
        problems.append(f"rope_scaling is {_show(scaling)}, only unscaled rope is supported")
    if parameters is None:
        return problems
    if not isinstance(parameters, dict):
        return [*problems, f"rope_parameters is {_show(parameters)}, must be an object"]
    if parameters.get("rope_type", "default") != "default" or not parameters.keys() <= {"rope_type", "rope_theta"}:
        problems.append(f"rope_parameters is {_show(parameters)}, only unscaled rope is supported")
    theta = parameters.get("rope_theta", values.get("rope_theta"))
    if values.setdefault("rope_theta", theta) != theta:
        problems.append(f"rope_theta is {_show(values['rope_theta'])}, but {_show(theta)} inside rope_parameters")
    return problems


def write_config(directory: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    """Writes `config.json`, with every value explicit and both spellings of those whose name changed.

    Transformers 4 looks for `rope_theta` and `torch_dtype`, transformers 5 for `rope_parameters` and `dtype`;
    defaults that are left out differ between readers.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    values = {
        "architectures": [_ARCHITECTURES[config.model_type]],
        **asdict(config),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **_only_values(config.model_type),
        "dtype": dtype_name,
        "torch_dtype": dtype_name,
        "use_cache": True,
    }
    if config.model_type == "llama":
        del values["sliding_window"]
    write_json(directory / CONFIG_NAME, values)
