"""`instruct shard`: conversations become token shards in which only what the assistant says is predicted."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from tyro.conf import Positional

from vikhr_fast.chat.conversation import Conversation, read_conversations
from vikhr_fast.chat.encode import ChatEncoder, EncodedChat
from vikhr_fast.corpus.mix import SPLITS, TRAIN_TOML, train_toml
from vikhr_fast.corpus.shard import Encoded, token_dtype, write_encoded
from vikhr_fast.corpus.stage import show_counts
from vikhr_fast.data.splits import is_within
from vikhr_fast.errors import InputError, require
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, refuse_existing, write_text
from vikhr_fast.io.names import refuse_as_directories
from vikhr_fast.tokenizer.lost_bytes import LostBytes

_BATCH = 1024  # conversations
_SHARD_TOKENS = 1 << 28  # after which a new file is begun


@dataclass(frozen=True)
class ShardConversations:
    """Encodes conversations into OUTPUT/train/SOURCE and OUTPUT/validation/SOURCE for `vikhr-fast train`.

    Only what the assistant says is trained on, but for answers with "train": false. A conversation that is too long
    keeps its turns up to the last trained answer that fits; without one it is left out, and so is a conversation that
    the template refuses or changes. OUTPUT/train.toml names the shards as a training configuration does.
    """

    input: Annotated[tuple[Path, ...], Positional]
    """Conversations (.jsonl), as `instruct convert` writes them."""
    tokenizer: Path
    """The model's directory, with tokenizer and chat template."""
    output: Path
    """Directory to make."""
    sequence_length: int = 1024
    """Positions that a conversation may take; training needs at least as long sequences."""
    validation: float = 0.01
    """Share of the conversations to hold out, by the hash of what the user says first."""
    weights: dict[str, float] = field(default_factory=dict)
    """How often a source's conversations are taken: 0.5 is half of them, 2 each of them twice; 1 where not named."""
    threads: int = 0
    """Threads that encode; 0 is one a core."""


class Cut(NamedTuple):
    """A conversation as far as it fits."""

    chat: EncodedChat
    answers: int
    """How many that are trained on are left; `chat` is empty without any."""


def cut_chat(chat: EncodedChat, tokens: int) -> Cut:
    """A conversation up to its last answer that ends within so many tokens; what follows it is cut off, too."""
    ends = np.flatnonzero(chat.is_trained & ~np.append(chat.is_trained[1:], False)) + 1
    ends = ends[ends <= tokens]
    end = int(ends[-1]) if len(ends) else 0
    return Cut(EncodedChat(chat.ids[:end], chat.is_trained[:end]), len(ends))


def shard_conversations(options: ShardConversations) -> None:
    """Writes `options.output`, complete or not at all.

    Raises:
        InputError: impossible options, unreadable conversations, a tokenizer or template that cannot be used, weights
            of unknown sources, or nothing left to train on.
    """
    require(
        options,
        sequence_length=(options.sequence_length >= 2, "2 or more"),
        validation=(0 <= options.validation < 1, "0 or more and below 1"),
        threads=(options.threads >= 0, "0 or more"),
    )
    for source, weight in options.weights.items():
        if not 0 < weight < 1e6:
            raise InputError(f"--weights {source} {weight}: must be above 0")
    refuse_existing(options.output)
    encoder = ChatEncoder(options.tokenizer)
    sources = list(dict.fromkeys(one.source for one in read_conversations(options.input)))
    if unknown := sorted(options.weights.keys() - set(sources)):
        raise InputError(f"--weights {', '.join(unknown)}: no such source; there are {', '.join(sources)}")
    refuse_as_directories(sources)
    counts: dict[str, Counter[str]] = {}
    lost = LostBytes(encoder.tokenizer)
    with atomic_directory(options.output) as directory:
        shards = []
        for name, split in ((f"{split}/{source}", (source, split)) for split in SPLITS for source in sources):
            batches = _encoded(_chosen(options, *split), encoder, options, counts.setdefault(name, Counter()), lost)
            if (first := next(batches, None)) is not None:
                (directory / name).mkdir(parents=True)
                write_encoded(directory / name, chain([first], batches), encoder.tokenizer, _SHARD_TOKENS)
                shards.append(name)
        if not any(name.startswith("train/") for name in shards):
            lost_ones = _lost_ones(counts.values())
            advice = "lower --validation, raise --sequence-length or take another template"
            raise InputError(f"{options.output}: nothing to train on, {lost_ones}; {advice}")
        write_text(directory / TRAIN_TOML, train_toml(options.output, shards, dict.fromkeys(sources, 1.0)))
    lost.warn()
    for name, own in counts.items():
        if own and not own["conversations"]:
            logger.warning(f"{name}: nothing is left of it, {_lost_ones([own])}")
    show_counts(f"instruct shard: {options.output}", {name: dict(own) for name, own in counts.items() if own})
    logger.info(f"instruct shard: {options.output / TRAIN_TOML} names the shards for `vikhr-fast train`")


def _chosen(options: ShardConversations, source: str, split: str) -> Iterator[Conversation]:
    """The conversations of one source and split, as often as they are taken."""
    weight = options.weights.get(source, 1.0)
    whole = int(weight)
    for this_round in range(whole + (weight > whole) if split == "train" else 1):
        for conversation in read_conversations(options.input):
            is_validation = is_within(conversation.prompt, options.validation)
            is_wanted = is_validation or is_within(conversation.prompt, weight - this_round, draw=1)
            if conversation.source == source and is_validation == (split == "validation") and is_wanted:
                yield conversation


def _lost_ones(counts: Collection[Counter[str]]) -> str:
    """How many conversations were left out, and why."""
    too_long, refused = (sum(own[why] for own in counts) for why in ("too_long", "refused"))
    return f"{too_long} too long and {refused} refused by the template"


def _encoded(
    conversations: Iterator[Conversation],
    encoder: ChatEncoder,
    options: ShardConversations,
    counts: Counter[str],
    lost: LostBytes,
) -> Iterator[Encoded]:
    """Batches of encoded conversations; counts those that are whole, cut, too long, and refused."""
    while batch := list(islice(conversations, _BATCH)):
        counts.update(conversations=0, tokens=0, cut=0, trained=0, too_long=0, refused=0)
        kept, sizes = [], []
        encoded = encoder.encode_each([one.messages for one in batch], threads=options.threads)
        for conversation, chat in zip(batch, encoded, strict=True):
            if isinstance(chat, InputError):
                if not counts["refused"]:
                    reason = f"left out, like any other of {conversation.source} that the template refuses"
                    logger.warning(f"conversation {conversation.id}: {reason}: {chat}")
                counts.update(refused=1)
                continue
            cut = cut_chat(chat, options.sequence_length + 1)  # the last token is only a target
            if not cut.answers:
                counts.update(too_long=1)
                continue
            kept.append(cut.chat)
            lost.count(message.content for message in conversation.messages)
            answers = [one.content for one in conversation.messages if one.role == "assistant" and one.is_trained]
            sizes.append(sum(len(answer.encode("utf-8")) for answer in answers[: cut.answers]))
            counts.update(conversations=1, tokens=len(cut.chat.ids), cut=cut.answers < len(answers))
            counts.update(trained=int(cut.chat.is_trained.sum()))
        if kept:
            yield Encoded(
                np.concatenate([chat.ids for chat in kept]).astype(token_dtype(encoder.tokenizer)),
                np.array([len(chat.ids) for chat in kept]),
                [batch[0].source] * len(kept),
                sizes,
                np.concatenate([chat.is_trained for chat in kept]),
            )
