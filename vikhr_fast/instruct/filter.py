"""`instruct filter`: the conversations whose answers a reward model finds good."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
from pydantic import Field
from tyro.conf import Positional

from vikhr_fast.chat.conversation import read_conversations, write_conversations
from vikhr_fast.config import read_record
from vikhr_fast.corpus.stage import show_counts
from vikhr_fast.data.documents import Counts, add_counts
from vikhr_fast.data.sources import checksum
from vikhr_fast.encoder.classifier import Labels, Scores
from vikhr_fast.errors import InputError, require
from vikhr_fast.instruct.convert import CONVERSATIONS
from vikhr_fast.instruct.reward import SETTINGS, Answered, RewardModel
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import json_text, sha256_of, write_json_lines, write_text
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.io.resumable import resumable_directory, scratch_of
from vikhr_fast.model.devices import Device

SCORES = "scores.jsonl"
_DIGITS = 4
_SCORES = pydantic.TypeAdapter(list[Annotated[float, Field(allow_inf_nan=False)]])


@dataclass(frozen=True)
class FilterConversations:
    """Keeps the conversations that score at least a threshold, or all but the worst share of each source.

    What is scored is the last answer, given all that was said before it. OUTPUT/scores.jsonl has every score. The same
    command goes on where an interrupted one stopped.
    """

    input: Annotated[tuple[Path, ...], Positional]
    """Conversations (.jsonl)."""
    reward: Path
    """Directory that `instruct train-reward` wrote."""
    output: Path
    """Directory to make."""
    threshold: float | None = None
    """Least score of a conversation that is kept."""
    drop: float = 0.0
    """Share of the worst conversations of a source to leave out."""
    drops: dict[str, float] = field(default_factory=dict)
    """The same for single sources: SOURCE SHARE SOURCE SHARE ..."""
    batch_tokens: int = 16_384
    """Tokens scored at once, padding included."""
    chunk: int = 2048
    """Conversations scored between two savings."""
    device: Device = "auto"
    """auto is CUDA where there is a GPU."""


def filter_conversations(options: FilterConversations) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on.

    Raises:
        InputError: impossible options, unreadable conversations, no reward model, or nothing left.
    """
    require(
        options,
        drop=(0 <= options.drop < 1, "0 or more and below 1"),
        batch_tokens=(options.batch_tokens >= 1, "1 or more"),
        chunk=(options.chunk >= 1, "1 or more"),
    )
    for source, share in options.drops.items():
        if not 0 <= share < 1:
            raise InputError(f"--drops {source} {share}: must be 0 or more and below 1")
    if options.threshold is None and not options.drop and not options.drops:
        raise InputError("instruct filter: give --threshold, --drop or --drops")
    with resumable_directory(options.output, _work(options)) as directory:
        scores = _score(options, scratch_of(directory))
        identities = [(one.id, one.source) for one in read_conversations(options.input)]
        sources = [source for _, source in identities]
        if unknown := sorted(options.drops.keys() - set(sources)):
            raise InputError(
                f"--drops {', '.join(unknown)}: no such source; there are {', '.join(dict.fromkeys(sources))}"
            )
        kept = kept_of(scores, sources, options)
        if not kept.any():
            raise InputError(f"{options.output}: no conversation is left; the best score is {scores.max():.4f}")
        pairs = zip(read_conversations(options.input), kept, strict=True)
        write_conversations(directory / CONVERSATIONS, (one for one, is_kept in pairs if is_kept))
        rows = zip(identities, scores.tolist(), kept.tolist(), strict=True)
        notes = (
            {"id": own, "source": source, "score": score, "kept": is_kept} for (own, source), score, is_kept in rows
        )
        write_json_lines(directory / SCORES, notes)
    counts: Counts = {}
    for source, is_kept in zip(sources, kept, strict=True):
        add_counts(counts, {source: {"kept": int(is_kept), "filtered_out": int(not is_kept)}})
    show_counts(f"instruct filter: {options.output}", counts)


def kept_of(scores: Scores, sources: list[str], options: FilterConversations) -> Labels:
    """bool [conversations]; equal scores share their fate, so that a source may lose less than its share."""
    kept = np.ones(len(scores), bool) if options.threshold is None else scores >= options.threshold
    names = np.array(sources)
    for source in dict.fromkeys(sources):
        own = scores[names == source]
        dropped = int(options.drops.get(source, options.drop) * len(own))
        kept[names == source] &= own >= np.sort(own)[dropped]
    return kept


def _work(options: FilterConversations) -> dict[str, object]:
    """What the result depends on."""
    if not (options.reward / SETTINGS).is_file():
        raise InputError(f"{options.reward}: no reward model; make one with `vikhr-fast instruct train-reward`")
    return {
        "stage": "instruct filter",
        "input": [checksum(path) for path in options.input],
        "reward": {path.name: sha256_of(path) for path in sorted(options.reward.glob("*.safetensors"))},
        **{name: getattr(options, name) for name in ("threshold", "drop", "drops", "batch_tokens", "chunk")},
    }


def _score(options: FilterConversations, scratch: Path) -> Scores:
    """[conversations] all scores, rounded; finished chunks are taken from the scratch directory."""
    model: RewardModel | None = None
    scores: list[float] = []
    advice = f"remove {scratch.parent} and begin anew"
    conversations = read_conversations(options.input)
    with progress_bar("instruct filter") as advance:
        while batch := list(islice(conversations, options.chunk)):
            path = scratch / f"scores-{len(scores)}.json"
            if not path.exists():
                model = model or RewardModel.load(options.reward, options.device)
                before = ("\n\n".join(message.content for message in one.messages[:-1]) for one in batch)
                answered = [Answered(prompt, one.answer) for prompt, one in zip(before, batch, strict=True)]
                found = model.score(answered, options.batch_tokens)
                write_text(path, json_text([round(value, _DIGITS) for value in found.tolist()]))
            saved = read_record(path, _SCORES, advice)
            if len(saved) != len(batch):
                raise InputError(f"{path}: damaged: {len(saved)} scores of {len(batch)} conversations; {advice}")
            scores += saved
            advance(len(batch))
    if model is not None:
        logger.info(f"instruct filter: {len(scores):,} conversations scored")
    return np.array(scores)
