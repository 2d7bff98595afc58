"""A small byte-level BPE tokenizer, of the kind that Llama 3 has."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers


def make_tokenizer(directory: Path, texts: Iterable[str], vocab_size: int = 400) -> Path:
    """Writes `tokenizer.json` and `tokenizer_config.json` into the directory, made if missing; returns the former."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    config = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>", "pad_token": None}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
