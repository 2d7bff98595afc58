"""A tiny base of Llama 3's kind: byte-level, a head of its own, control tokens behind the vocabulary, its template."""

import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics

from byte_level import STEPS, make_tokenizer

from vikhr_fast.model.config import ModelConfig
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer import JsonEncoder

CONTROL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def make_tokenizer_of_llama_3(directory: Path) -> int:
    """Writes it, learnt from English, the template in tokenizer_config.json; returns its number of tokens."""
    file = make_tokenizer(directory, [topics[name] for name in sorted(topics)][:30])
    content = json.loads(file.read_text(encoding="utf-8")) | STEPS["llama-bpe"]
    content["model"]["ignore_merges"] = True
    first = len(content["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": first + n, "content": token, **flags} for n, token in enumerate(CONTROL)]
    file.write_text(json.dumps(content), encoding="utf-8")
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    file.with_name("tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    )
    return JsonEncoder.from_file(file).vocab_size


def make_base(directory: Path, is_tied: bool = False) -> int:
    """Writes a model with random weights and the tokenizer; returns the number of its tokens."""
    tokens = make_tokenizer_of_llama_3(directory.with_name(f"{directory.name}-tokenizer"))
    shape = ModelConfig(
        vocab_size=tokens + 24, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, initializer_range=0.1, rope_theta=5e5,
        bos_token_id=0, eos_token_id=1, model_type="llama", tie_word_embeddings=is_tied,
    )  # fmt: skip
    Mistral(shape, seed=1).save_pretrained(directory)
    shutil.copytree(directory.with_name(f"{directory.name}-tokenizer"), directory, dirs_exist_ok=True)
    return tokens
