"""`corpus mix`: documents become token shards, a directory a source, by their source's weight; some are held out."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, arg

from vikhr_fast.corpus.settings import MixStage
from vikhr_fast.corpus.shard import encode_documents, encoder_for_shards
from vikhr_fast.corpus.stage import is_finished, show_counts, work_of
from vikhr_fast.data.documents import MANIFEST, Documents, read_footer, read_part
from vikhr_fast.data.read import Document
from vikhr_fast.data.splits import is_within
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError, require
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, json_text, write_json, write_text
from vikhr_fast.io.names import refuse_as_directories
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.io.resumable import resumable_directory

TRAIN_TOML = "train.toml"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Mix:
    """Encodes documents into OUTPUT/train/SOURCE and OUTPUT/validation/SOURCE, and writes what training needs of them.

    OUTPUT/train.toml names the shards and KL weights as a training configuration does.
    """

    input: Annotated[Path, Positional]
    """Documents that an earlier stage wrote."""
    output: Path
    """Directory to make."""
    settings: Annotated[MixStage, arg(name="")]
    """Tokenizer and held-out share."""
    weights: dict[str, float] = field(default_factory=dict)
    """How often each document of a source is taken: 0.5 is half of them, 2 each of them twice; 1 where not named."""
    kl_weights: dict[str, float] = field(default_factory=dict)
    """Factor of the KL on a source's documents in training; 1 where not named."""
    threads: int = 0
    """Threads that encode; 0 is one a core."""
    sources: Suppress[tuple[str, ...]] = ()
    """All names, also those of which no document is left; without it those of the documents."""


def mix(options: Mix) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on.

    Raises:
        InputError: unreadable documents, a tokenizer that cannot be used, weights of unknown sources.
    """
    documents, settings, output = Documents.open(options.input), options.settings, options.output
    names = options.sources or tuple(documents.counts)
    refuse_as_directories({**dict.fromkeys(names), **documents.counts})
    require(options, threads=(0 <= options.threads <= 4096, "0 to 4096"))
    for flag, values in (("weights", options.weights), ("kl-weights", options.kl_weights)):
        for name, value in values.items():
            if name not in names:
                raise InputError(f"--{flag} {name}: no such source; there are {', '.join(names)}")
            if flag == "weights" and not 0 < value <= 1000:
                raise InputError(f"--weights {name} {value}: must be above 0, and 1000 at most")
            if not 0 <= value < math.inf:
                raise InputError(f"--kl-weights {name} {value}: must be 0 or more")
    weights = {name: options.weights.get(name, 1) for name in names}
    kl_weights = {name: options.kl_weights.get(name, 1) for name in names}
    encoder = encoder_for_shards(settings.tokenizer)
    work = work_of(
        "mix",
        settings,
        input=documents.sha256,
        tokenizer={"sha256": encoder.sha256, "bos_id": encoder.bos_id, "eos_id": encoder.eos_id},
        weights={name: [weights[name], kl_weights[name]] for name in names},
    )
    if is_finished(output, work, settings):
        return
    shards: dict[str, dict[str, Any]] = {}
    with resumable_directory(output, work, settings) as directory, progress_bar("mix") as advance:
        for split in SPLITS:
            (directory / split).mkdir(exist_ok=True)
            for name in documents.counts:
                texts = _Texts(documents, name, split, settings.validation, weights[name])
                target = directory / split / name
                if not target.exists() and any(texts):
                    with atomic_directory(target) as temporary:
                        encode_documents(temporary, texts, encoder, settings.shard_tokens, options.threads, advance)
                if target.exists():
                    shards[f"{split}/{name}"] = _summary(target)
        if not any(name.startswith("train/") for name in shards):
            raise InputError(f"{documents.directory}: nothing to train on; lower `validation` or raise the weights")
        write_text(directory / TRAIN_TOML, train_toml(output, shards, kl_weights))
        write_json(directory / MANIFEST, {"stage": "mix", "work": work, "shards": shards})
    show_counts(
        f"mix: {output}", {n: {k: own[k] for k in ("documents", "tokens", "bytes")} for n, own in shards.items()}
    )
    logger.info(f"mix: {output / TRAIN_TOML} names the shards for `vikhr-fast train`")


@dataclass(frozen=True)
class _Texts:
    """The documents of one source and split, as often as they are taken; can be gone through more than once."""

    documents: Documents
    source: str
    split: str
    validation: float
    weight: float

    def __iter__(self) -> Iterator[Document]:
        parts = [part for part in self.documents.parts if self.source in read_footer(part)["counts"]]
        rounds = math.ceil(self.weight) if self.split == "train" else 1
        for this_round in range(rounds):
            for part in parts:
                table = read_part(part)
                rows = zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True)
                for number, (text, source) in enumerate(rows, start=1):
                    if source == self.source and self._is_taken(text, this_round):
                        yield Document(text, Path(self.source), number)

    def _is_taken(self, text: str, this_round: int) -> bool:
        """By the hash of the text: first the split, then whether a last, partial round has it."""
        is_held_out = is_within(text, self.validation)
        if self.split == "validation" or is_held_out:
            return is_held_out and self.split == "validation"
        return is_within(text, self.weight - this_round, draw=1)


def _summary(directory: Path) -> dict[str, Any]:
    """What a shard directory holds."""
    shards = TokenShards.open(directory, verify=False)
    counts = {"documents": shards.num_documents, "tokens": shards.num_tokens, "bytes": shards.num_bytes}
    return {**counts, "sha256": shards.sha256}


def train_toml(output: Path, shards: Collection[str], kl_weights: dict[str, float]) -> str:
    """The shards, by split/source, and KL weights by source as a training configuration names them."""

    def quoted(text: str) -> str:  # as JSON does, but for the one control character that it leaves alone
        return json_text(text).replace("\x7f", "\\u007f")

    lines = ["# For the configuration of `vikhr-fast train`.", ""]
    for split in SPLITS:
        lines.append(f"[data.{split}]")
        for name in kl_weights:
            if f"{split}/{name}" in shards:
                lines.append(f"{quoted(name)} = {quoted(str(output / split / name))}")
        lines.append("")
    lines.append("[kl.source_weights]")
    lines += [f"{quoted(name)} = {weight}" for name, weight in kl_weights.items() if f"train/{name}" in shards]
    return "\n".join([*lines, ""])
