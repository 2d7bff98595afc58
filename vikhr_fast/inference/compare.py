"""`generate compare`: the answers of several models side by side, in the manner of the paper's table 6."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated

from tyro.conf import arg

from vikhr_fast.chat.template import Message
from vikhr_fast.data.read import read_objects
from vikhr_fast.errors import InputError
from vikhr_fast.inference.batch import chat_of
from vikhr_fast.inference.engine import ChatEngine
from vikhr_fast.inference.sampling import Sampling
from vikhr_fast.io.html import Table, print_tables
from vikhr_fast.model.devices import Device
from vikhr_fast.tokenizer.lost_bytes import LostBytes

PROMPTS = (
    "Что такое чебурек?",
    "Расскажи на русском языке что такое хачапури",
    "Расскажи на русском языке как приготовить уху",
)
"""Those of the paper's table 6, asked where no others are given."""
NO_ANSWER = "(no answer: "
"""What stands in place of one begins so; it is none of the model's words."""
_BATCH = 8  # prompts answered together
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]")


@dataclass(frozen=True)
class GenerateCompare:
    """Asks several models the same, and prints the answers side by side with the share of Latin-script words in them.

    In Russian answers that share tells how often a model falls back into English. The prompts are those of the paper's
    table 6 unless --prompts names others. The paper's own footnote says that table 6 and the discussion around it
    contained a serious issue, for which the workshop publication was withdrawn: only the prompts are taken from it.
    """

    models: dict[str, Path]
    """Models by the name to show: NAME DIRECTORY NAME DIRECTORY ..."""
    prompts: Path | None = None
    """Prompts (.jsonl) as `generate batch` takes them; without it the three of table 6."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    """How answers are drawn."""
    device: Device = "auto"
    """auto is CUDA where there is a GPU."""


def compare(options: GenerateCompare) -> None:
    """Prints the table; InputError for a model, settings or prompts that cannot be used."""
    options.sampling.refuse_impossible()
    if not options.models:
        raise InputError("--models: name at least one")
    chats = _chats(options.prompts)
    answers = {name: _answers(directory, chats, options) for name, directory in options.models.items()}
    print_tables([side_by_side(chats, answers)])


def side_by_side(chats: list[list[Message]], answers: dict[str, list[str]]) -> Table:
    """What was asked last in each chat, the answers by the models' names, and how much of them is Latin."""
    rows = [(chat[-1].content, *texts) for chat, *texts in zip(chats, *answers.values(), strict=True)]
    shares = (mean_share([text for text in texts if not text.startswith(NO_ANSWER)]) for texts in answers.values())
    rows.append(("Latin-script words", *("no words" if share is None else f"{share:.1%}" for share in shares)))
    return Table("Side by side", ("prompt", *answers), tuple(rows))


def mean_share(texts: list[str]) -> float | None:
    """The mean share of Latin-script words over the answers that have words."""
    shares = [share for text in texts if (share := latin_share(text)) is not None]
    return fmean(shares) if shares else None


def latin_share(text: str) -> float | None:
    """The share of words with a Latin letter among all words; None for a text without words."""
    words = _WORD.findall(text)
    return sum(bool(_LATIN.search(word)) for word in words) / len(words) if words else None


def _chats(path: Path | None) -> list[list[Message]]:
    if path is None:
        return [[Message("user", prompt)] for prompt in PROMPTS]
    chats = []
    for number, record in read_objects(path):
        try:
            chats.append(chat_of(record))
        except InputError as error:
            raise InputError(f"{path}: line {number}: {error}") from None
    if not chats:
        raise InputError(f"{path}: no prompts in it")
    return chats


def _answers(directory: Path, chats: list[list[Message]], options: GenerateCompare) -> list[str]:
    """One model is in memory at a time."""
    engine = ChatEngine(directory, options.device)
    prompts = [engine.prompt(chat) for chat in chats]
    lost = LostBytes(engine.tokenizer)
    lost.count(message.content for chat in chats for message in chat)
    lost.warn()
    answers = []
    for start in range(0, len(prompts), _BATCH):
        numbers = range(start, min(start + _BATCH, len(prompts)))
        answers += engine.answer([prompts[number] for number in numbers], options.sampling, numbers)
    return [answer.text for answer in answers]
