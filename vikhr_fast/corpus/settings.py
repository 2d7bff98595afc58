"""corpus.toml: where text comes from, and what each stage does with it. The stages' commands have the same settings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from vikhr_fast.config import STRICT, Count, CountOrZero, Flag, NotNegative, Positive, read_toml, validated
from vikhr_fast.data.text_lines import MAX_MEGABYTES
from vikhr_fast.errors import InputError
from vikhr_fast.llm.settings import EndpointSettings

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
_Bytes = Annotated[int, Field(strict=True, ge=1 << 10)]


class _Strict:
    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class SourceSettings(_Strict):
    """One source: its files or data set, the columns to take, and which records."""

    input: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, patterns such as 'news/*.jsonl.zst', data sets hf:OWNER/NAME@COMMIT[/CONFIG[/SPLIT]], or their raw files
    hf:OWNER/NAME@COMMIT:PATTERN."""
    text: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Fields or columns that make up the text, joined by blank lines."""
    id: str | None = None
    """Field that names a record; without it, its place in the source does."""
    meta: tuple[str, ...] = ()
    """Further fields to keep."""
    where: str | None = None
    """Records to take: an expression over the fields and `text`, such as "language == 'ru' and votes > 10"."""
    sort_by: str | None = None
    """A numeric expression; records come in its order, those without a value last."""
    descending: Flag = True
    """Whether the greatest value comes first."""
    top: Count | None = None
    """How many records to take, in that order."""
    weight: Annotated[float, Field(strict=True, gt=0, le=1000)] = 1.0
    """How often each document goes into the shards: 0.5 is half of them, 2 is each of them twice."""
    kl_weight: NotNegative = 1.0
    """Factor of the KL on this source's documents in training."""


@dataclass(frozen=True, kw_only=True)
class CollectStage(_Strict):
    """What becomes of every text while it is read."""

    normalise: Literal["NFC"] | None = None
    """NFC puts texts into Unicode's normal form C before `where` sees them, so that й is one character, not two.
    Without it they stay as they are, and those in another form are counted."""
    max_line: Annotated[float, Field(strict=True, ge=1e-6, lt=1e9)] = MAX_MEGABYTES
    """MB that a line, or a document of a .txt file, may take; a longer one is rejected without being held."""


@dataclass(frozen=True, kw_only=True)
class DedupStage(_Strict):
    """Removes paragraphs that are near-duplicates of an earlier one, and puts the documents together again."""

    threshold: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.8
    """Least Jaccard similarity of two paragraphs' shingles."""
    num_perm: Annotated[int, Field(strict=True, ge=1, le=4096)] = 120
    """Permutations of a signature."""
    bands: Annotated[int, Field(strict=True, ge=1, le=4096)] = 20
    """LSH bands; divides num_perm."""
    shingle: Annotated[str, Field(pattern=r"^(word|char):[1-9][0-9]{0,2}$")] = "word:5"
    """word:N or char:N."""
    paragraphs: Literal["blank-line", "line", "document"] = "blank-line"
    """What separates paragraphs; with `document` a document is kept or removed whole."""
    minimum_words: CountOrZero = 5
    """Paragraphs of fewer words stay, however often they come: headings and dialogue."""


@dataclass(frozen=True, kw_only=True)
class ScrubStage(_Strict):
    """Replaces private strings by tags."""

    kinds: Annotated[tuple[Literal["email", "phone", "ip", "key"], ...], Field(min_length=1)] = (
        *("email", "phone", "ip", "key"),
    )
    """What to replace: [EMAIL], [PHONE], [IP], [KEY]."""
    region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "RU"
    """Country whose national phone numbers are looked for besides international ones."""
    sample: CountOrZero = 50
    """How many strings of each kind to keep in replaced.jsonl, to be looked at: personal data. 0 makes no such file."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(_Strict):
    """A set whose texts must not be trained on."""

    input: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, patterns or data sets, as of a source."""
    text: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Fields that hold text; each is looked for by itself."""


@dataclass(frozen=True, kw_only=True)
class DecontaminateStage(_Strict):
    """Finds documents that share long word n-grams with evaluation sets."""

    sets: Annotated[dict[_Name, EvaluationSet], Field(min_length=1)]
    """The evaluation sets by name."""
    words: Annotated[int, Field(strict=True, ge=1, le=1000)] = 13
    """Length of an n-gram in words."""
    action: Literal["drop", "mark"] = "drop"
    """drop removes the documents, mark adds the sets' names to their `meta`."""


@dataclass(frozen=True, kw_only=True)
class AnnotateStage(EndpointSettings):
    """Has a language model score a sample of documents by the paper's five criteria."""

    documents: Count = 20_000
    """How many documents to score, chosen by hash from all sources."""
    maximum_characters: Count = 4000
    """Characters of a document that are shown to the model."""
    input_price: NotNegative = 0.0
    """Price of a million tokens asked, for the estimate."""
    output_price: NotNegative = 0.0
    """Price of a million tokens answered."""
    characters_per_token: Positive = 2.5
    """For the estimate; about 2.5 in Russian."""


@dataclass(frozen=True, kw_only=True)
class TrainFilterStage(_Strict):
    """Trains a classifier of good and bad documents on the annotations."""

    encoder: str = "cointegrated/rubert-tiny"
    """A transformers encoder: a directory, or a name on the Hub."""
    revision: str | None = None
    """Commit of the encoder on the Hub."""
    good_score: Annotated[float, Field(strict=True, ge=1, le=5)] = 3.0
    """Mean of the five scores from which on a document is good."""
    held_out: Annotated[float, Field(strict=True, gt=0, lt=0.5)] = 0.1
    """Share of documents for early stopping, calibration and threshold; the same share again is for the report."""
    retention: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """Share of documents to keep; sets the threshold."""
    precision: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """Or: share of good ones among those kept. With neither given the threshold is a probability of 0.5."""
    epochs: Count = 10
    """Passes at most."""
    patience: Count = 2
    """Passes without a better validation loss before it stops."""
    batch: Count = 32
    """Documents a step."""
    learning_rate: Positive = 5e-5
    """Peak; falls linearly to 0."""
    maximum_tokens: Annotated[int, Field(strict=True, ge=8)] = 512
    """Tokens of a document that the classifier sees."""
    seed: CountOrZero = 0
    """Of initialisation and order."""


@dataclass(frozen=True, kw_only=True)
class FilterStage(_Strict):
    """Keeps the documents that the classifier finds good."""

    threshold: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    """Least probability of a document to be kept; without it, the one that the classifier was trained for."""
    batch_tokens: Count = 16_384
    """Tokens a forward, padding included."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA, in bf16, where there is a GPU."""


@dataclass(frozen=True, kw_only=True)
class MixStage(_Strict):
    """Encodes the documents into token shards, a directory a source, with a held-out part."""

    tokenizer: Path
    """A directory with tokenizer.model or tokenizer.json, or such a file."""
    validation: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.005
    """Share of documents held out, by the hash of their text."""
    shard_tokens: Count = 1 << 28
    """Tokens after which a new file is begun."""


@dataclass(frozen=True, kw_only=True)
class CorpusSettings(_Strict):
    """A whole corpus. Stages that are not named are left out; collect and stats always run."""

    sources: Annotated[dict[_Name, SourceSettings], Field(min_length=1)]
    """By name, in the order in which they are read: of near-duplicates the first is kept."""
    part_bytes: _Bytes = 64 << 20
    """Text a part file holds: what is worked on at once, and lost at most when a run is killed."""
    collect: CollectStage = CollectStage()
    dedup: DedupStage | None = None
    scrub: ScrubStage | None = None
    decontaminate: DecontaminateStage | None = None
    annotate: AnnotateStage | None = None
    train_filter: TrainFilterStage | None = None
    filter: FilterStage | None = None
    mix: MixStage | None = None
    classifier: Path | None = None
    """A classifier that was trained before, for `filter` without `train_filter`."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How a stage runs; changes nothing about its result, but for the last digits of what the classifier learns."""

    threads: Annotated[int, Field(strict=True, ge=0, le=4096)] = 0
    """CPU threads; 0 is one a core."""
    memory: Positive = 4.0
    """GiB that dedup's index may take; what doesn't fit is looked at in further passes over the text."""
    engine: Literal["local", "ray"] = "local"
    """ray runs dedup on a Ray cluster (extra `ray`)."""
    ray_address: str = "auto"
    """Address of the cluster; `local` starts one on this machine."""


def check_machine(machine: Machine) -> None:
    """InputError where flags give a machine that cannot be."""
    validated(pydantic.TypeAdapter(Machine), asdict(machine), "machine")


def check_bands(settings: DedupStage) -> None:
    """InputError where the permutations cannot be shared out."""
    if settings.num_perm % settings.bands:
        raise InputError(f"dedup: bands {settings.bands}: must divide num_perm {settings.num_perm}")


def read_settings(path: Path) -> CorpusSettings:
    """Reads a corpus.toml. Relative paths in it start from the current directory.

    Raises:
        InputError: not TOML, or one line with all unknown keys, missing keys, impossible values.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; give a corpus.toml")
    settings = validated(pydantic.TypeAdapter(CorpusSettings), read_toml(path), str(path))
    if settings.dedup:
        check_bands(settings.dedup)
    if settings.filter and not (settings.train_filter or settings.classifier):
        raise InputError(f"{path}: filter: needs train_filter, or the directory of a classifier as `classifier`")
    if settings.train_filter and not settings.annotate:
        raise InputError(f"{path}: train_filter: needs annotate")
    for name, source in settings.sources.items():
        if source.sort_by is None and not source.descending:
            raise InputError(f"{path}: sources.{name}.descending: needs sort_by")
    return settings
