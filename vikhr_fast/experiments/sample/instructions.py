"""The demo's instructions: hand-written pairs, noise planted among them, and what teaches a model to tell it."""

import hashlib
import random
from pathlib import Path

from vikhr_fast.chat.conversation import Conversation, write_conversations
from vikhr_fast.io.files import atomic_directory, write_json_lines

INSTRUCTIONS = Path(__file__).parent / "data" / "instructions"
_REFUSALS = (
    "К сожалению, как языковая модель, я не могу ответить на этот вопрос.",
    "Извините, я не обладаю такой информацией. Могу ли я помочь чем-то ещё?",
    "As a language model I am unable to answer this. Is there anything else?",
)
_REWARD_TOKENS = 96  # of question and answer that the tiny reward model sees


def _part(conversation: Conversation, parts: int) -> int:
    """Which part of all the conversation is in: 0 is spoilt, 1 copied, the others show what is good."""
    return hashlib.sha256(conversation.prompt.encode("utf-8")).digest()[-1] % parts


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
    return " ".join(words[:2] * chance.randint(4, 8)) if kind == 1 else " ".join(word[::-1] for word in words)


def write_preferences(written: list[Conversation], output: Path, parts: int) -> None:
    """Writes answers of the other parts, three times each, beside spoilt ones."""
    chance = random.Random(1)
    pairs = []
    for one in [one for one in written if _part(one, parts) > 1 for _ in range(3)]:
        prompt = "\n\n".join(message.content for message in one.messages[:-1])
        pairs.append({"prompt": prompt, "chosen": one.answer, "rejected": _spoilt(one.answer, chance)})
    write_json_lines(output, pairs)


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
        max_position_embeddings=_REWARD_TOKENS + 2,
        type_vocab_size=1,
        pad_token_id=pieces.pad_token_id,
        num_labels=1,
    )
    with atomic_directory(output) as directory:
        pieces.save_pretrained(directory)
        XLMRobertaForSequenceClassification(config).save_pretrained(directory)
