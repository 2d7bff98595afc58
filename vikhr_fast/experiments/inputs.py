"""What the demo and the grids of its scale begin with: texts, a model, noise and instructions, made without network.

Their commands are `inputs texts|start|noise|annotations|conversations ... --output DIRECTORY`.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
from tyro.conf import Positional

from vikhr_fast.chat.conversation import read_conversations, write_conversations
from vikhr_fast.config import read_record
from vikhr_fast.corpus.annotate import ANNOTATIONS
from vikhr_fast.data.documents import MANIFEST, Documents
from vikhr_fast.data.read import read_documents
from vikhr_fast.data.splits import is_within
from vikhr_fast.errors import InputError
from vikhr_fast.experiments.noise import SEEN, bad_documents, nearly
from vikhr_fast.experiments.sample.instructions import INSTRUCTIONS, plant, write_encoder, write_preferences
from vikhr_fast.experiments.sample.text import ENGLISH, RUSSIAN, VALIDATION_BYTES, text_source, write_texts
from vikhr_fast.instruct.convert import CONVERSATIONS, Convert, convert
from vikhr_fast.io.files import atomic_directory, json_text, write_json, write_json_lines, write_text
from vikhr_fast.tokenizer import BpeEncoder
from vikhr_fast.tokenizer.export import MODEL_NAME, export_tokenizer

BUNDLED = "bundled"
HEAD_SIZE = 32
_POSITIONS = 1024
_GOOD, _BAD = 4, 1
_DIGESTS = pydantic.TypeAdapter(frozenset[str])
_CRITERIA = ("informativeness", "usefulness", "grammar", "style", "safety")
_NOISE_RATE = 0.5  # exact copies, near-copies and bad documents, each so many a document
_NOISE_SEED = 1
_WORDS_OF_NEAR_COPY = 50  # one word of a shorter paragraph is in too many of its shingles


@dataclass(frozen=True)
class Texts:
    """Russian and English text to train on and to hold out: LANGUAGE-train.jsonl and LANGUAGE-validation.jsonl."""

    output: Path
    """Directory to make."""
    data: str = BUNDLED
    """Directory with ru/*.txt and en/*.txt, or `bundled`: the sample corpus and Python's own reference."""
    russian: tuple[Path, ...] = ()
    """Files instead of these,"""
    english: tuple[Path, ...] = ()
    """likewise."""
    max_bytes: int = 1_000_000
    """Training text of a language at most."""
    validation_bytes: int = VALIDATION_BYTES
    """Held-out text of a language at most."""


@dataclass(frozen=True)
class Start:
    """A small Mistral with random weights."""

    output: Path
    """Directory to make."""
    tokenizer: Path
    """Directory of its tokenizer."""
    hidden_size: int = 192
    """Width, a multiple of 64."""
    layers: int = 4
    """How many."""
    seed: int = 0
    """Of the weights."""


@dataclass(frozen=True)
class Noise:
    """A text with copies, near-copies and bad documents among it, its corpus.toml, and a tiny random encoder."""

    text: Annotated[Path, Positional]
    """JSONL with a document a line."""
    output: Path
    """Directory to make."""
    tokenizer: Path
    """The encoder's."""


@dataclass(frozen=True)
class Annotations:
    """What an annotating model that is never wrong would say of documents with planted noise."""

    documents: Annotated[Path, Positional]
    """Directory that a corpus stage wrote."""
    noise: Path
    """Directory of the noise."""
    output: Path
    """Directory to make, as `corpus annotate` does."""


@dataclass(frozen=True)
class Conversations:
    """The demo's instructions: held-out ones, the others alone and with planted noise, preferences, a tiny encoder."""

    output: Path
    """Directory to make."""
    tokenizer: Path | None = None
    """Of the encoder, whose weights are random; without it none is made."""
    parts: int = 4
    """Of so many conversations one answer is spoilt, and one conversation is copied."""
    held_out: float = 0.2
    """Share of the conversations that is held out."""


def make_texts(options: Texts) -> None:
    """Writes the texts; InputError where there are too few."""
    files = {ENGLISH: options.english, RUSSIAN: options.russian}
    if options.data != BUNDLED:
        folders = {ENGLISH: "en", RUSSIAN: "ru"}
        files = {
            language: own or tuple(sorted((Path(options.data) / folders[language]).glob("*.txt")))
            for language, own in files.items()
        }
        if empty := [language for language, own in files.items() if not own]:
            raise InputError(f"{options.data}: no {' and no '.join(empty)} text; needs ru/*.txt and en/*.txt")
    sources = {language: text_source(language, own) for language, own in files.items()}
    write_texts(options.output, sources, options.max_bytes, options.validation_bytes)


def make_start(options: Start) -> None:
    """Writes the model as a Hugging Face directory."""
    from vikhr_fast.model.config import write_config
    from vikhr_fast.model.mistral import Mistral, ModelConfig
    from vikhr_fast.model.weights import write_weights

    encoder = BpeEncoder.from_file(options.tokenizer / MODEL_NAME)
    heads = options.hidden_size // HEAD_SIZE
    config = ModelConfig(
        vocab_size=encoder.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=HEAD_SIZE,
        max_position_embeddings=_POSITIONS,
        bos_token_id=encoder.bos_id,
        eos_token_id=encoder.eos_id,
    )
    model = Mistral(config, seed=options.seed)
    with atomic_directory(options.output) as directory:
        write_config(directory, config, model.head_module.weight.dtype)
        write_weights(directory, model.state_dict())
        export_tokenizer(options.tokenizer / MODEL_NAME, directory)


def make_noise(options: Noise) -> None:
    """Writes noisy.jsonl, bad.json with the hashes of the bad documents, corpus.toml and encoder/."""
    chance = random.Random(_NOISE_SEED)
    clean = [document.text for document in read_documents([options.text])]
    count = round(_NOISE_RATE * len(clean))
    long = [text for text in clean if len(text.split()) >= _WORDS_OF_NEAR_COPY]
    if not long or not count:
        raise InputError(f"{options.text}: too little text, or too short documents, to plant noise among")
    bad = bad_documents(SEEN, count, clean, _NOISE_SEED)
    copies = [*chance.choices(clean, k=count), *(nearly(text, chance) for text in chance.choices(long, k=count)), *bad]
    chance.shuffle(copies)
    with atomic_directory(options.output) as directory:
        # Noise comes last: of near-duplicates dedup keeps the first.
        write_json_lines(directory / "noisy.jsonl", ({"text": text} for text in [*clean, *copies]))
        write_text(directory / "bad.json", json_text(sorted(map(_digest, bad)), indent=0) + "\n")
        source = json_text(str(options.output / "noisy.jsonl"))
        write_text(directory / "corpus.toml", f"[sources.{RUSSIAN}]\ninput = [{source}]\n")
        write_encoder(options.tokenizer, directory / "encoder")


def make_annotations(options: Annotations) -> None:
    """Writes the annotations of all documents in the order of their hashes, as `corpus annotate` has them."""
    bad = read_record(options.noise / "bad.json", _DIGESTS, "`inputs noise` writes it")
    documents = Documents.open(options.documents)
    rows = [row for table in documents.tables() for row in table.to_pylist()]
    notes = []
    for row in sorted(rows, key=lambda row: _digest(row["text"])):
        score = _BAD if _digest(row["text"]) in bad else _GOOD
        scores = dict.fromkeys(_CRITERIA, score)
        notes.append({"hash": _digest(row["text"]), **{k: row[k] for k in ("id", "source", "text")}, "scores": scores})
    with atomic_directory(options.output) as directory:
        write_json_lines(directory / ANNOTATIONS, notes)
        manifest = {"stage": "annotate", "work": {"input": documents.sha256}, "annotated": len(notes), "failed": 0}
        write_json(directory / MANIFEST, manifest)


def make_conversations(options: Conversations) -> None:
    """Writes held-out.jsonl, train.jsonl, and of the latter noisy.jsonl and preferences.jsonl; and encoder/."""
    with atomic_directory(options.output) as directory:
        for language, code in ((RUSSIAN, "ru"), (ENGLISH, "en")):
            convert(Convert((INSTRUCTIONS / f"{language}.jsonl",), language, directory / language, code))
        every = list(read_conversations([directory / language / CONVERSATIONS for language in (RUSSIAN, ENGLISH)]))
        held_out, others = (
            [one for one in every if is_within(one.prompt, options.held_out) == aside] for aside in (True, False)
        )
        write_conversations(directory / "held-out.jsonl", held_out)
        write_conversations(directory / "train.jsonl", others)
        plant(others, directory / "noisy.jsonl", options.parts)
        write_preferences(others, directory / "preferences.jsonl", options.parts)
        if options.tokenizer is not None:
            write_encoder(options.tokenizer, directory / "encoder")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


INPUTS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "texts": (Texts, make_texts),
    "start": (Start, make_start),
    "noise": (Noise, make_noise),
    "annotations": (Annotations, make_annotations),
    "conversations": (Conversations, make_conversations),
}
"""What each command of the grids' takes and does."""
