"""The demo's instructions: hand-written pairs, noise planted among them, and the stages that take it out again."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vikhr_fast.demo.paths import DemoPaths
from vikhr_fast.demo.text import ENGLISH, RUSSIAN
from vikhr_fast.files import atomic_directory, write_text
from vikhr_fast.instruct.conversation import Conversation, read_conversations, write_conversations
from vikhr_fast.instruct.convert import CONVERSATIONS, Convert, convert
from vikhr_fast.instruct.dedup import DedupConversations, dedup_conversations
from vikhr_fast.instruct.filter import FilterConversations, filter_conversations
from vikhr_fast.instruct.shard import ShardConversations, shard_conversations
from vikhr_fast.instruct.train_reward import TrainReward, train_reward

INSTRUCTIONS = Path(__file__).parent / "data" / "instructions"
VALIDATION = 0.1
"""Share of the pairs that is held out."""
_PARTS = 12
_DROP = 0.1  # a bit more than is spoilt
_REFUSALS = (
    "К сожалению, как языковая модель, я не могу ответить на этот вопрос.",
    "Извините, я не обладаю такой информацией. Могу ли я помочь чем-то ещё?",
    "As a language model I am unable to answer this. Is there anything else?",
)
REWARD_TOKENS = 96
"""Tokens of question and answer that the tiny reward model sees."""


@dataclass(frozen=True)
class Noise:
    """What became of the planted noise and of the written pairs."""

    written: int
    """Written pairs whose answer was left as it is."""
    written_left: int
    copies: int
    """Copies of written pairs, in other case and punctuation."""
    copies_left: int
    spoilt: int
    """Written pairs whose answer was replaced by a refusal, a stammer or reversed words."""
    spoilt_left: int


def instruction_stages(paths: DemoPaths, sequence_length: int) -> Iterator[tuple[str, Path, Callable[[], object]]]:
    """The stages from written pairs to shards: title, output, work."""
    root = paths.instructions
    for language, code in ((RUSSIAN, "ru"), (ENGLISH, "en")):
        converting = Convert((INSTRUCTIONS / f"{language}.jsonl",), language, root / language, code)
        yield f"{language} instructions", converting.output, partial(convert, converting)
    noisy, preferences, encoder = (root / name for name in ("noisy.jsonl", "preferences.jsonl", "encoder"))
    yield "planted noise", noisy, lambda: plant(_written(root), noisy, _PARTS)
    unique = DedupConversations((noisy,), root / "unique", priority=(RUSSIAN, ENGLISH))
    yield "instructions without copies", unique.output, partial(dedup_conversations, unique)
    yield "preferences", preferences, lambda: write_preferences(_written(root), preferences, _PARTS)
    yield "encoder", encoder, partial(write_encoder, paths.tokenizer(RUSSIAN), encoder)
    reward = TrainReward(
        (preferences,),
        root / "reward",
        encoder=str(encoder),
        maximum_tokens=REWARD_TOKENS,
        learning_rate=1e-3,
        epochs=3,
    )
    yield "reward model", reward.output, partial(train_reward, reward)
    good = FilterConversations((unique.output / CONVERSATIONS,), reward.output, root / "good", drop=_DROP)
    yield "good instructions", good.output, partial(filter_conversations, good)
    shards = ShardConversations(
        (good.output / CONVERSATIONS,),
        paths.tokenizer(RUSSIAN),
        root / "shards",
        sequence_length=sequence_length,
        validation=VALIDATION,
    )
    yield "instruction shards", shards.output, partial(shard_conversations, shards)


def noise_left(root: Path) -> Noise:
    """Compares what was planted with what is left, by the ids."""
    planted, left = (
        [one.id.rpartition("/")[2] for one in read_conversations([path])]
        for path in (root / "noisy.jsonl", root / "good" / CONVERSATIONS)
    )
    kinds = ("written", "copy", "spoilt")
    before, after = ([ids.count(kind) for kind in kinds] for ids in (planted, left))
    return Noise(before[0], after[0], before[1], after[1], before[2], after[2])


def _part(conversation: Conversation, parts: int) -> int:
    """Which part of all the conversation is in: 0 is spoilt, 1 copied, the others show what is good."""
    return hashlib.sha256(conversation.prompt.encode("utf-8")).digest()[-1] % parts


def _written(root: Path) -> list[Conversation]:
    return list(read_conversations([root / language / CONVERSATIONS for language in (RUSSIAN, ENGLISH)]))


def plant(written: list[Conversation], output: Path, parts: int) -> None:
    """Writes the written pairs, one in `parts` spoilt, and copies of as many; what each is ends its id."""
    chance = random.Random(0)
    made, copies = [], []
    for one in written:
        part = _part(one, parts)
        if part == 0:
            last = one.messages[-1]._replace(content=_spoilt(one.answer, chance))
            made.append(one._replace(id=f"{one.id}/spoilt", messages=(*one.messages[:-1], last)))
            continue
        made.append(one._replace(id=f"{one.id}/written"))
        if part == 1:
            messages = tuple(message._replace(content=f"{message.content.upper()} …") for message in one.messages)
            copies.append(one._replace(id=f"{one.id}/copy", messages=messages))
    write_conversations(output, [*made, *copies])


def _spoilt(answer: str, chance: random.Random) -> str:
    words = answer.split()
    kind = chance.randrange(3)
    if kind == 0:
        return chance.choice(_REFUSALS)
    if kind == 1:
        return " ".join(words[:2] * chance.randint(4, 8))
    return " ".join(word[::-1] for word in words)


def write_preferences(written: list[Conversation], output: Path, parts: int) -> None:
    """Writes answers of the other parts beside spoilt ones."""
    chance = random.Random(1)
    lines = []
    for one in written:
        if _part(one, parts) > 1:
            prompt = "\n\n".join(message.content for message in one.messages[:-1])
            for _ in range(3):
                pair = {"prompt": prompt, "chosen": one.answer, "rejected": _spoilt(one.answer, chance)}
                lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    write_text(output, "".join(lines))


def write_encoder(tokenizer: Path, output: Path) -> None:
    """An encoder of XLM-R's kind, tiny and with random weights: the demo takes nothing from the network."""
    import torch
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    pieces = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    pieces.pad_token = pieces.unk_token
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(pieces),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=REWARD_TOKENS + 2,
        type_vocab_size=1,
        pad_token_id=pieces.pad_token_id,
        num_labels=1,
    )
    with atomic_directory(output) as directory:
        pieces.save_pretrained(directory)
        XLMRobertaForSequenceClassification(config).save_pretrained(directory)
