"""Programs of others that read what this package writes: where `make clients` puts them, and what tests ask of them."""

import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from byte_level import HARD_PARTS, make_tokenizer
from safetensors.torch import load_file, save_file
from training_runs import DATA

from vikhr_fast.adapt.adapt import Adapt, adapt
from vikhr_fast.model.config import ModelConfig
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.model.weights import EMBEDDING, HEAD
from vikhr_fast.tokenizer.extend import ExtendTokenizer, extend_tokenizer
from vikhr_fast.tokenizer.load import Encoder, load_encoder
from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

REPOSITORY = Path(__file__).parents[2]
CLIENTS = REPOSITORY / "build" / "clients"
PROMPTS = ("Утром туман поднялся над рекой", "Кот сидит на окне и", "The statement may be", "В 1837 году:\n")
NEW_TOKENS = 24
MARGIN = 1e-3  # between the two best logits, so that another order of sums chooses the same token
_LOOKALIKES = ["<s>", "</s>", "<unk>", "<|im_start|>user\n", "<|im_end|>", "<|begin|>", "<0x41>", "▁", "▁▁a", "<0x0A>"]
_SHAPE = ModelConfig(
    vocab_size=900,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,  # the least that vLLM has on a CPU
    max_position_embeddings=512,
    initializer_range=0.6,  # attention of random weights must matter for what is generated
)


def installed(name: str, file: str = "") -> Path:
    """A file of a client, or its directory; the test is skipped without it."""
    path = CLIENTS / name / file
    if not path.exists():
        pytest.skip(f"{path.relative_to(REPOSITORY)} isn't there; `make clients` installs it")
    return path


def run_client(command: list[Any], python_path: Path | None = None) -> None:
    """Runs a client to a good end; none asks the Hub."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment = {**os.environ, **offline}
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=3600)
    assert finished.returncode == 0, f"{finished.stdout[-3000:]}\n{finished.stderr[-6000:]}"


def ask(command: list[Any], question: dict[str, Any], directory: Path) -> Any:
    """What a client answers, who reads the question and writes the answer as JSON: other output may be mixed up."""
    question_file, answer_file = directory / "question.json", directory / "answer.json"
    question_file.write_text(json.dumps(question), encoding="utf-8")
    run_client([*command, question_file, answer_file])
    return json.loads(answer_file.read_text(encoding="utf-8"))


def texts_to_encode() -> list[str]:
    """178 texts: Russian and English paragraphs, what looks like control tokens, and strings that are hard to split."""
    russian = [file.read_text(encoding="utf-8").split("\n\n") for file in sorted((DATA / "russian").glob("*.txt"))]
    texts = [paragraph for paragraphs in russian for paragraph in paragraphs[:12]]
    texts += [topics[name][:2000] for name in sorted(topics)[:18]]
    texts += ["a" * 500, " " * 40 + "я", "Ёж\n\n\n  ёж\t\tёж ", "Привет" * 60, "12345678901234567890 ١٢٣ 1,000.50"]
    draw = random.Random(0)
    parts = [*HARD_PARTS, *_LOOKALIKES]
    texts += ["".join(draw.choices(parts, k=draw.randint(1, 25))) for _ in range(178 - len(texts))]
    return texts


def sentencepiece_model(directory: Path) -> Path:
    """A Mistral of random weights with a SentencePiece vocabulary that was learnt from Russian and English."""
    root = directory / "sentencepiece"
    tokenizer = TrainTokenizer(input=_learnt_from(root), output=root / "tokenizer", vocab_size=900)
    train_tokenizer(tokenizer)
    shape = replace(_SHAPE, vocab_size=load_encoder(tokenizer.output).vocab_size)
    return _without_broken_text(_with_tokenizer(shape, tokenizer.output, root / "model"))


def byte_level_model(directory: Path, kind: str, *, is_tied: bool = False) -> Path:
    """A Llama of random weights, extended by Russian tokens and adapted to them, as the commands do it."""
    root = directory / kind
    russian, english = _learnt_from(root)
    file = make_tokenizer(root / "tokenizer", english.read_text(encoding="utf-8").split("\n\n"), 600, kind)
    if kind == "llama-bpe":
        content = json.loads(file.read_text(encoding="utf-8"))
        content["model"]["ignore_merges"] = True
        file.write_text(json.dumps(content), encoding="utf-8")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    file.with_name("tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    tokens = load_encoder(file.parent).vocab_size
    shape = replace(_SHAPE, vocab_size=tokens, model_type="llama", rope_theta=5e5, tie_word_embeddings=is_tied)
    base = _with_tokenizer(replace(shape, bos_token_id=0, eos_token_id=1), file.parent, root / "base")
    extended = ExtendTokenizer(base=base, input=(russian,), output=root / "extended", vocab_size=tokens + 302)
    extend_tokenizer(extended)
    adapt(Adapt(base=base, tokenizer=extended.output, output=root / "model"))
    return _without_broken_text(root / "model")


def _with_tokenizer(shape: ModelConfig, tokenizer: Path, output: Path) -> Path:
    """Writes a model of random weights beside a tokenizer's files."""
    Mistral(shape, seed=1).save_pretrained(output)
    for file in tokenizer.iterdir():
        shutil.copy(file, output)
    return output


def _without_broken_text(directory: Path) -> Path:
    """Zeros in the head for what is no text alone, so that it isn't generated: each client shows it its own way.

    So for a byte of a letter, or a control token.
    """
    file, encoder = directory / "model.safetensors", load_encoder(directory)
    tensors = load_file(file)
    head = tensors[HEAD if HEAD in tensors else EMBEDDING]
    for index in range(encoder.vocab_size):
        text = encoder.decode([index])
        if not text or "\ufffd" in text:
            head[index] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def _learnt_from(root: Path) -> tuple[Path, Path]:
    """Files of Russian and of English text, by which vocabularies are learnt."""
    root.mkdir()
    russian, english = root / "russian.txt", root / "english.txt"
    russian.write_text((DATA / "russian" / "stories.txt").read_text(encoding="utf-8"), encoding="utf-8")
    english.write_text("\n\n".join(topics[name] for name in sorted(topics)[:30]), encoding="utf-8")
    return russian, english


def prompt_ids(encoder: Encoder) -> list[list[int]]:
    """The prompts, each behind BOS."""
    return [[encoder.bos_id, *encoder.encode(prompt).tolist()] for prompt in PROMPTS]


@torch.no_grad()
def greedy(model: Mistral, prompt: list[int]) -> list[int]:
    """The tokens of the best logits, in float32; each is the best beyond doubt, and some of them differ."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        best = model.logits(model(torch.tensor([ids])))[0, -1].topk(2)
        assert float(best.values[0] - best.values[1]) > MARGIN, "a tie: take another seed"
        ids.append(int(best.indices[0]))
    new = ids[len(prompt) :]
    assert len(set(new)) > NEW_TOKENS // 3, "it turns in a circle: take another seed"
    return new
