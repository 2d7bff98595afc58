"""vLLM on a CPU: it reads the directories, and generates what the model here does."""

from pathlib import Path

import pytest
from clients import (
    NEW_TOKENS,
    REPOSITORY,
    ask,
    byte_level_model,
    greedy,
    installed,
    prompt_ids,
    sentencepiece_model,
    texts_to_encode,
)

from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import load_encoder

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("kind", ["sentencepiece", "llama-bpe"])
def test_the_same_ids_and_greedy_text(tmp_path: Path, kind: str) -> None:
    installed("vllm", ".installed")
    model = sentencepiece_model(tmp_path) if kind == "sentencepiece" else byte_level_model(tmp_path, kind)
    encoder, texts = load_encoder(model), texts_to_encode()
    prompts = prompt_ids(encoder)
    question = {"model": str(model), "texts": texts, "prompts": prompts, "new_tokens": NEW_TOKENS}
    program = REPOSITORY / "tests" / "helpers" / "ask_vllm.py"
    answer = ask([installed("vllm", "bin/python"), program], question, tmp_path)
    for text, ids in zip(texts, answer["ids"], strict=True):
        assert ids == encoder.encode(text).tolist(), text
    ours = Mistral.from_pretrained(model)
    for prompt, found in zip(prompts, answer["generated"], strict=True):
        expected = greedy(ours, prompt)
        assert found["ids"] == expected
        whole = encoder.decode([*prompt, *expected])  # of a text that goes on, the first space is shown
        assert found["text"] == whole.removeprefix(encoder.decode(prompt))
