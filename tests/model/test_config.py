import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, MistralConfig

from vikhr_fast.errors import InputError
from vikhr_fast.model.config import ModelConfig, read_config, write_config

# As published with Mistral-7B-v0.1.
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
# As published with Llama-2-7b-hf and Meta-Llama-3-8B.
LLAMA_2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3 = LLAMA_2 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
WITHOUT = object()
UNUSUAL = ModelConfig(
    vocab_size=101,
    hidden_size=20,
    intermediate_size=30,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=10,
    max_position_embeddings=77,
    rms_norm_eps=3e-4,
    rope_theta=123.5,
    sliding_window=9,
    tie_word_embeddings=True,
    initializer_range=0.07,
    bos_token_id=5,
    eos_token_id=None,
)


def write(directory: Path, **changes: Any) -> Path:
    values = {name: value for name, value in (MISTRAL_7B | changes).items() if value is not WITHOUT}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def refusal(directory: Path) -> str:
    with pytest.raises(InputError) as raised:
        read_config(directory)
    message = str(raised.value)
    assert message.startswith(f"{directory / 'config.json'}: ")
    assert "\n" not in message
    return message


def test_reads_mistral_7b(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert (config.vocab_size, config.head_dim, config.sliding_window) == (32000, 128, 4096)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 10000.0)


@pytest.mark.parametrize(("values", "theta"), [(LLAMA_2, 10000.0), (LLAMA_3, 500000.0)])
def test_reads_llama_as_a_mistral_without_a_window(tmp_path: Path, values: dict[str, Any], theta: float) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = read_config(tmp_path)
    assert (config.head_dim, config.sliding_window, config.rope_theta) == (128, None, theta)
    assert config.num_key_value_heads == values["num_key_value_heads"]
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    assert read_config(tmp_path / "theirs") == config


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "only unscaled rope"),
        ({"eos_token_id": [128001, 128008]}, "eos_token_id is [128001, 128008]"),
        ({"num_key_value_heads": WITHOUT}, "num_key_value_heads is missing"),
    ],
)
def test_refuses_llamas_it_would_not_compute(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    values = {name: value for name, value in (LLAMA_2 | changes).items() if value is not WITHOUT}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert complaint in refusal(tmp_path)


def test_a_tied_head_is_read_as_one(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, tie_word_embeddings=True)).tie_word_embeddings
    for absent in (WITHOUT, None, False):
        assert not read_config(write(tmp_path, tie_word_embeddings=absent)).tie_word_embeddings
    for odd in ("no", 1, [True]):
        assert "tie_word_embeddings is " in refusal(write(tmp_path, tie_word_embeddings=odd))


def test_a_llama_has_no_window(tmp_path: Path) -> None:
    """One that stands in its config.json is read over, as transformers does."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2 | {"sliding_window": 4096}))
    config = read_config(tmp_path)
    assert config.sliding_window is None
    with pytest.raises(InputError, match=r"^model configuration: sliding_window is 9, must be null, because a Llama"):
        replace(config, sliding_window=9)


@pytest.mark.parametrize("values", [LLAMA_2, LLAMA_3])
def test_a_llama_is_written_as_transformers_writes_it(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = read_config(tmp_path)
    (tmp_path / "ours").mkdir()
    write_config(tmp_path / "ours", config, torch.bfloat16)
    assert read_config(tmp_path / "ours") == config
    theirs, ours = (AutoConfig.from_pretrained(path) for path in (tmp_path, tmp_path / "ours"))
    assert type(ours) is LlamaConfig
    apart = ("_name_or_path", "dtype", "transformers_version")
    theirs, ours = ({k: v for k, v in c.to_dict().items() if k not in apart} for c in (theirs, ours))
    assert ours.items() >= theirs.items()
    assert "sliding_window" not in json.loads((tmp_path / "ours" / "config.json").read_text())


@pytest.mark.parametrize("name", ["tie_word_embeddings", "attention_bias", "mlp_bias", "attention_dropout"])
def test_null_is_none(tmp_path: Path, name: str) -> None:
    """As transformers takes it; adapt copies it, and what it wrote must be read."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2 | {name: None}))
    assert read_config(tmp_path).vocab_size == 32000


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": WITHOUT, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
        {"rope_scaling": None, "rope_parameters": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default"}},
        {"head_dim": 128},
        {"head_dim": None},
        {"initializer_range": WITHOUT, "bos_token_id": WITHOUT, "eos_token_id": WITHOUT, "hidden_act": WITHOUT},
    ],
)
def test_reads_every_spelling(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "plain").mkdir()
    assert read_config(write(tmp_path, **changes)) == read_config(write(tmp_path / "plain"))


def test_round_trip_through_transformers(tmp_path: Path) -> None:
    usual = [field.name for field in fields(ModelConfig) if getattr(UNUSUAL, field.name) == field.default]
    assert usual == ["model_type"]  # a Llama has no window
    write_config(tmp_path, UNUSUAL, torch.bfloat16)
    assert read_config(tmp_path) == UNUSUAL
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, MistralConfig)
    assert theirs.architectures == ["MistralForCausalLM"]
    assert theirs.dtype == torch.bfloat16
    theirs.save_pretrained(tmp_path / "theirs")
    assert read_config(tmp_path / "theirs") == UNUSUAL


def test_writes_both_spellings(tmp_path: Path) -> None:
    write_config(tmp_path, UNUSUAL, torch.float32)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 123.5
    assert values["rope_parameters"]["rope_type"] == "default"
    assert values["dtype"] == values["torch_dtype"] == "float32"
    assert values["hidden_act"] == "silu"
    assert values["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "gpt2"}, 'model_type is "gpt2"'),
        ({"model_type": WITHOUT}, "model_type is null"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes", must be true or false'),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling is {"type": "linear", "factor": 2.0}'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}}, 'rope_parameters is {"rope_type": "yarn"'),
        ({"rope_parameters": {"rope_theta": 10000.0, "factor": 2.0}}, "only unscaled rope"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 10000.0, but 5.0 inside rope_parameters"),
        ({"rope_parameters": 3}, "rope_parameters is 3, must be an object"),
        ({"rope_theta": WITHOUT}, "rope_theta is missing"),
        ({"sliding_window": WITHOUT}, "sliding_window is missing"),
        ({"rms_norm_eps": WITHOUT}, "rms_norm_eps is missing"),
        ({"num_key_value_heads": WITHOUT}, "num_key_value_heads is missing"),
        ({"hidden_size": 4097}, "head_dim is missing"),
        ({"vocab_size": 0}, "vocab_size is 0, must be a positive integer"),
        ({"vocab_size": True}, "vocab_size is true, must be a positive integer"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, must be a positive integer"),
        ({"num_attention_heads": "32"}, 'num_attention_heads is "32", must be a positive integer'),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, must be a positive integer, 4,096 at most"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, must be a positive integer, 16,777,216 at most"),
        ({"hidden_size": 2**40, "head_dim": 128}, "hidden_size is 1099511627776, must be a positive integer"),
        ({"sliding_window": 2**31}, "sliding_window is 2147483648, must be a positive integer, or null"),
        ({"intermediate_size": 1e4}, "intermediate_size is 10000.0, must be a positive integer"),
        ({"head_dim": 127}, "head_dim is 127, must be even"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5, must be a divisor of num_attention_heads (32)"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05, must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN, must be a positive number"),
        ({"rope_theta": 10**400}, "000, must be a positive number"),
        ({"sliding_window": 0}, "sliding_window is 0, must be a positive integer, or null"),
        ({"initializer_range": -1}, "initializer_range is -1, must be"),
        ({"bos_token_id": 32000}, "bos_token_id is 32000, must be below vocab_size (32000)"),
        ({"eos_token_id": [2, 3]}, "eos_token_id is [2, 3], must be one token id"),
    ],
)
def test_refuses_what_it_would_not_compute(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    assert complaint in refusal(write(tmp_path, **changes))


def test_names_every_problem_at_once(tmp_path: Path) -> None:
    changes = {
        "hidden_act": "relu",
        "vocab_size": -1,
        "num_key_value_heads": 5,
        "sliding_window": WITHOUT,
        "head_dim": 3,
    }
    message = refusal(write(tmp_path, **changes))
    for name in changes:
        assert name in message
    with pytest.raises(InputError, match=r"^model configuration: vocab_size .*head_dim "):
        ModelConfig(
            **{field.name: getattr(UNUSUAL, field.name) for field in fields(ModelConfig)}
            | {"vocab_size": 0, "head_dim": 5}
        )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"vocab_size": 3,\n "hidden_size" 4}', "line 2, column 16: not JSON: Expecting ':' delimiter"),
        (b"", "line 1, column 1: not JSON"),
        (b'{"a": "\xff"}', "byte 7: not UTF-8"),
        (b"[1, 2]", "must hold a JSON object, holds a list"),
        (None, "no such file"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert complaint in refusal(tmp_path)
