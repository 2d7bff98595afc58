"""`generate compare`: the answers of several models side by side, in the manner of the paper's table 6."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated

from rich.console import Console
from rich.table import Table as TerminalTable
from tyro.conf import arg

from vikhr_fast.chat.template import Message
from vikhr_fast.corpus.read import read_objects
from vikhr_fast.devices import Device
from vikhr_fast.errors import InputError
from vikhr_fast.files import refuse_existing
from vikhr_fast.generate.answering import Answerer
from vikhr_fast.generate.batch import chat_of
from vikhr_fast.generate.purity import latin_share
from vikhr_fast.generate.sampling import Sampling
from vikhr_fast.report import Page, Section, Table, write_report

PROMPTS = (
    "Объясни простыми словами, почему небо голубое.",
    "Напиши короткое письмо коллеге с просьбой перенести встречу на четверг.",
    "Какие реки впадают в Каспийское море? Назови три и скажи, чем каждая известна.",
)
"""Asked where no others are given."""
_BATCH = 8  # prompts answered together


@dataclass(frozen=True)
class GenerateCompare:
    """Asks several models the same, and shows the answers side by side with the share of Latin-script words in them.

    In Russian answers that share tells how often a model falls back into English.
    """

    models: dict[str, Path]
    """Models by the name to show: NAME DIRECTORY NAME DIRECTORY ..."""
    output: Path
    """HTML page to make."""
    prompts: Path | None = None
    """Prompts (.jsonl) as `generate batch` takes them; without it three of our own."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    """How answers are drawn."""
    device: Device = "auto"
    """auto is CUDA where there is a GPU."""


def compare(options: GenerateCompare) -> None:
    """Prints the table and writes the page.

    Raises:
        InputError: a model, settings or prompts that cannot be used.
    """
    options.sampling.refuse_impossible()
    refuse_existing(options.output)
    if not options.models:
        raise InputError("--models: name at least one")
    chats = _chats(options.prompts)
    answers = {name: _answers(directory, chats, options) for name, directory in options.models.items()}
    table = TerminalTable(title="Side by side", show_lines=True)
    table.add_column("prompt", ratio=1)
    for name in answers:
        table.add_column(name, ratio=2)
    for number, chat in enumerate(chats):
        table.add_row(chat[-1].content, *(texts[number] for texts in answers.values()))
    table.add_row("Latin-script words", *_purity(answers).values())
    Console(markup=False).print(table)
    write_report(options.output, *side_by_side(chats, answers))
    print(options.output)


def side_by_side(chats: list[list[Message]], answers: dict[str, list[str]]) -> Page:
    """The page: a section a prompt, with the answers by the models' names."""
    found = []
    for number, chat in enumerate(chats):
        rows = tuple((name, texts[number], show_share(latin_share(texts[number]))) for name, texts in answers.items())
        header = ("model", "answer", "Latin-script words")
        found.append(Section(chat[-1].content, parts=(Table("Answers, and how much of each is Latin.", header, rows),)))
    shares = ", ".join(f"{name} {share}" for name, share in _purity(answers).items())
    return Page("Side by side", f"Mean share of Latin-script words: {shares}.", found)


def _purity(answers: dict[str, list[str]]) -> dict[str, str]:
    return {name: show_share(mean_share(texts)) for name, texts in answers.items()}


def mean_share(texts: list[str]) -> float | None:
    """The mean share of Latin-script words over the answers that have words."""
    shares = [share for text in texts if (share := latin_share(text)) is not None]
    return fmean(shares) if shares else None


def show_share(share: float | None) -> str:
    """A share as per cent."""
    return "no words" if share is None else f"{share:.1%}"


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
    answerer = Answerer(directory, options.device)
    prompts = [answerer.prompt(chat) for chat in chats]
    answers = []
    for start in range(0, len(prompts), _BATCH):
        numbers = range(start, min(start + _BATCH, len(prompts)))
        answers += answerer.answer([prompts[number] for number in numbers], options.sampling, numbers)
    return [answer.text for answer in answers]
