"""The proof that an exported tokenizer gives the same ids everywhere: three encoders on the same texts."""

import random
import re
from dataclasses import dataclass
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vikhr_fast.data.sources import read_texts
from vikhr_fast.errors import InputError
from vikhr_fast.io.plain import one_line
from vikhr_fast.tokenizer.added_tokens import named_tokens
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.chat_template import BEGIN, END, render_chats
from vikhr_fast.tokenizer.export import BYTE, CONTROL, UNKNOWN, find_model, read_model
from vikhr_fast.tokenizer.files import TOKENIZER_JSON, tokenizer_file
from vikhr_fast.tokenizer.json_encoder import refuse_fatal

_BATCH = 256  # texts
_SHOWN = 60  # characters of a text in an error
_SCRIPTS = (
    "abcdefghij XYZ", "абвгдежз ЮЯё", "αβγ中文字한국어 ", "0123456789.,-+()", "ах ", " \n\t\r▁", "😀\u200d👩\u0301é",
)  # fmt: skip


@dataclass(frozen=True)
class VerifyTokenizer:
    """Encodes texts with SentencePiece, this package and transformers; fails on the first difference.

    Text that looks like a control piece counts as text (`split_special_tokens=True` in transformers). Chats made with
    the chat template are compared with their segments encoded apart.
    """

    directory: Positional[Path]
    """What `tokenizer train`, `extend`, `export` or `adapt` wrote."""
    text: tuple[Path, ...] = ()
    """Text to encode: files, patterns such as 'ru/*.txt', or data sets of the Hub."""
    generated: int = 50_000
    """Number of generated strings: pieces of the vocabulary, scripts, control pieces as text, runs of spaces, any
    Unicode."""
    chats: int = 2_000
    """Number of generated chats, if there is a chat template."""


def verify(options: VerifyTokenizer) -> dict[str, int]:
    """Compares the three encoders.

    Returns:
        How many `documents`, `generated` strings and `chats` were compared, their `tokens`, and 0 `differences`.

    Raises:
        InputError: the first difference; or something that cannot be read.
    """
    encoders = _Encoders(options.directory)
    strings = _Strings(encoders)
    counts = {"documents": 0, "generated": 0, "chats": 0, "tokens": 0, "differences": 0}
    compared = [("documents", f"{source}: document", read_texts(source)) for source in options.text]
    generated = (strings.any() for _ in range(options.generated))
    for kind, place, texts in (*compared, ("generated", "generated string", generated)):
        while batch := list(islice(texts, _BATCH)):
            counts["tokens"] += encoders.compare(batch, place, counts[kind])
            counts[kind] += len(batch)
    chats = (strings.chat() for _ in range(options.chats if encoders.exported.chat_template is not None else 0))
    while some := list(islice(chats, _BATCH)):
        counts["tokens"] += encoders.compare_chats(some, counts["chats"])
        counts["chats"] += len(some)
    return counts


class _Encoders:
    """One tokenizer, as SentencePiece, this package and transformers load it."""

    def __init__(self, directory: Path) -> None:
        import sentencepiece
        from transformers import AutoTokenizer
        from transformers.utils import logging

        if directory.is_file():
            raise InputError(f"{directory}: not a directory; `vikhr-fast tokenizer export` makes one of a model file")
        if (file := tokenizer_file(directory)) is not None and file.name == TOKENIZER_JSON:
            reason = f"{TOKENIZER_JSON} alone, no SentencePiece model to compare it with"
            raise InputError(f"{directory}: {reason}; give a directory with tokenizer.model")
        self.directory, model_file = directory, find_model(directory)
        self.model = read_model(model_file)
        self.control = [piece.piece for piece in self.model.pieces if piece.type in (CONTROL, UNKNOWN)]
        self.ours = BpeEncoder.from_file(model_file)
        refuse_fatal(directory / TOKENIZER_JSON)
        logging.set_verbosity_error()  # no word about texts longer than a model's context
        try:
            self.peer = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{model_file}: SentencePiece cannot load it: {' '.join(str(error).split())}") from None
        control = {piece.piece: index for index, piece in enumerate(self.model.pieces) if piece.type == CONTROL}
        if found := {text: index for text, index in control.items() if not self.peer.is_control(index)}:
            advice = "`vikhr-fast tokenizer export` makes them control pieces"
            raise InputError(f"{model_file}: SentencePiece finds {named_tokens(found)} in text; {advice}")
        try:
            self.exported: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # the library that reads tokenizer.json raises plain Exception
            raise InputError(f"{directory}: transformers cannot load it: {' '.join(str(error).split())}") from None

    def compare(self, texts: list[str], what: str, first: int) -> int:
        """Raises InputError unless ids and decoded texts are equal; returns the number of tokens."""
        expected = self.peer.encode(texts)
        ids, offsets = self.ours.encode_batch(texts)
        ours = [ids[start:end].tolist() for start, end in pairwise(offsets)]
        theirs = self.exported(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        decoded = self.peer.decode(expected)
        for number, text in enumerate(texts):
            place = f"{what} {first + number + 1}"
            self._same(expected[number], ours[number], place, text, "vikhr_fast")
            self._same(expected[number], theirs[number], place, text, "transformers")
            back = self.exported.decode(theirs[number], clean_up_tokenization_spaces=False)
            if back != decoded[number] or self.ours.decode(ours[number]) != decoded[number]:
                raise InputError(f"{self.directory}: {place}: decoded differently: {decoded[number][:_SHOWN]!r}")
        return len(ids)

    def compare_chats(self, chats: list[list[dict[str, str]]], first: int) -> int:
        """Raises InputError unless each chat is its segments encoded apart; returns the number of tokens."""
        try:
            template = self.exported.get_chat_template()
        except ValueError as error:
            raise InputError(f"{self.directory}: no chat template: {one_line(str(error))}") from None
        if not isinstance(template, str):
            raise InputError(f"{self.directory}: its chat template is of type {type(template).__name__}; give text")
        values = {"add_generation_prompt": True, **self.exported.special_tokens_map}
        rendered = render_chats(template, str(self.directory), [{"messages": chat, **values} for chat in chats])
        tokens = 0
        for number, marked in enumerate(rendered, start=first + 1):
            if isinstance(marked, InputError):
                raise marked
            text = marked.replace(BEGIN, "").replace(END, "")
            expected: list[int] = []
            for segment in re.split(f"({'|'.join(map(re.escape, self.control))})", text):
                is_control = segment in self.control
                expected += [self.peer.piece_to_id(segment)] if is_control else self.peer.encode(segment)
            found = self.exported(text, add_special_tokens=False)["input_ids"]
            self._same(expected, found, f"generated chat {number}", text, "transformers")
            tokens += len(expected)
        return tokens

    def _same(self, expected: list[int], found: list[int], place: str, text: str, name: str) -> None:
        if expected == found:
            return
        at = next(index for index, (a, b) in enumerate(zip_longest(expected, found)) if a != b)
        rest = text[len(self.peer.decode(expected[:at])) :]
        ids = f"sentencepiece {expected[at : at + 5]}, {name} {found[at : at + 5]}"
        raise InputError(f"{self.directory}: {place}: token {at + 1}: {ids}, at {rest[:_SHOWN]!r}")


class _Strings:
    """Generates what is hard to encode; the same for a vocabulary."""

    def __init__(self, encoders: _Encoders) -> None:
        self._random = random.Random(0)
        pieces = [piece for piece in encoders.model.pieces if piece.type not in (CONTROL, UNKNOWN, BYTE)]
        self._pieces = [piece.piece.replace("▁", " ") for piece in pieces]
        self._control = [*encoders.control, "<0x41>", "<0x0A>"]

    def any(self) -> str:
        """A string of any kind, or several joined with control pieces as text between them."""
        parts = [self._random.choice((self._of_pieces, self._of_script, self._periodic, self._of_unicode))()]
        while self._random.random() < 0.3:
            parts += [self._random.choice([*self._control, " " * self._random.randint(1, 40), "\n"]), self.any()]
        return "".join(parts)

    def chat(self) -> list[dict[str, str]]:
        """A system message or none, then up to three questions with their answers, and no control piece as text."""
        roles = ["system"] * self._random.randint(0, 1) + ["user", "assistant"] * self._random.randint(1, 3)
        return [{"role": role, "content": self._without_control()} for role in roles]

    def _without_control(self) -> str:
        while True:
            content = self.any()
            for control in self._control:
                content = content.replace(control, "")
            if not any(control in content for control in self._control):
                return content

    def _of_pieces(self) -> str:
        return "".join(self._random.choices(self._pieces, k=self._random.randint(0, 20)))

    def _of_script(self) -> str:
        return "".join(self._random.choices(self._random.choice(_SCRIPTS), k=self._random.randint(0, 60)))

    def _periodic(self) -> str:
        return "".join(self._random.choices(self._pieces, k=2)) * self._random.randint(1, 12)

    def _of_unicode(self) -> str:
        highest = self._random.choices([0x7F, 0x7FF, 0xD7FF, 0x10FFFF], k=self._random.randint(0, 20))
        return "".join(chr(self._random.randint(0, code)) for code in highest).encode("utf-8", "ignore").decode()
