"""The proof that an exported tokenizer gives the same ids everywhere: three encoders on the same texts."""

import random
from dataclasses import dataclass
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vikhr_fast.chat.encode import ChatEncoder, EncodedChat
from vikhr_fast.chat.template import Message
from vikhr_fast.data.sources import read_texts
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.tokenizer.added_tokens import named_tokens
from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.byte_level import spells_bytes, token_bytes
from vikhr_fast.tokenizer.chat_template import ROLES, Role
from vikhr_fast.tokenizer.export import BYTE, CONTROL, UNKNOWN, read_model
from vikhr_fast.tokenizer.files import TOKENIZER_JSON
from vikhr_fast.tokenizer.json_encoder import JsonEncoder, refuse_fatal
from vikhr_fast.tokenizer.load import find_tokenizer

_BATCH = 256  # texts
_SHOWN = 60  # characters of a text in an error
_SCRIPTS = (
    "abcdefghij XYZ", "абвгдежз ЮЯё", "αβγ中文字한국어 ", "0123456789.,-+()", "ах ", " \n\t\r▁", "😀\u200d👩\u0301é",
)  # fmt: skip


@dataclass(frozen=True)
class VerifyTokenizer:
    """Encodes texts with this package, transformers and a peer; fails on the first difference.

    The peer is SentencePiece, or for a byte-level tokenizer.json the library `tokenizers`. Text that looks like a
    control piece counts as text (`split_special_tokens=True` in transformers). Chats have the ids, and where
    the template has generation blocks the masks, of transformers.
    """

    directory: Positional[Path]
    """What `tokenizer train`, `extend`, `export` or `adapt` wrote, or a base's."""
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
        How many `documents`, `generated` strings and `chats` were compared, and their `tokens`; how many
        `chats_refused` by the template were not; and 0 `differences`.

    Raises:
        InputError: the first difference; something that cannot be read; or a template that refuses every chat.
    """
    encoders = _Encoders(options.directory)
    strings = _Strings(encoders)
    counts = {"documents": 0, "generated": 0, "chats": 0, "chats_refused": 0, "tokens": 0, "differences": 0}
    compared = [("documents", f"{source}: document", read_texts(source)) for source in options.text]
    generated = (strings.any() for _ in range(options.generated))
    for kind, place, texts in (*compared, ("generated", "generated string", generated)):
        while batch := list(islice(texts, _BATCH)):
            counts["tokens"] += encoders.compare(batch, place, counts[kind])
            counts[kind] += len(batch)
    if options.chats and encoders.exported.chat_template is not None:
        chats = ChatEncoder(options.directory)
        roles = encoders.accepted_roles(chats)
        for first in range(0, options.chats, _BATCH):
            some = [strings.chat(roles) for _ in range(min(_BATCH, options.chats - first))]
            encoded = chats.encode_each(some, add_generation_prompt=True)
            refused = [one for one in encoded if isinstance(one, InputError)]
            if refused and not counts["chats_refused"]:
                logger.warning(f"a generated chat is left out, and so is any other that is refused: {refused[0]}")
            counts["tokens"] += encoders.compare_chats(chats, some, encoded, first)
            counts["chats"] += len(some) - len(refused)
            counts["chats_refused"] += len(refused)
        if not counts["chats"]:
            raise InputError(str(refused[0]))
    return counts


class _SentencePiece:
    """The peer of a tokenizer.model."""

    name = "sentencepiece"

    def __init__(self, file: Path) -> None:
        import sentencepiece

        model = read_model(file)
        self.ours = BpeEncoder.from_file(file)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{file}: SentencePiece cannot load it: {' '.join(str(error).split())}") from None
        control = {piece.piece: index for index, piece in enumerate(model.pieces) if piece.type == CONTROL}
        if found := {text: index for text, index in control.items() if not self._processor.is_control(index)}:
            advice = "`vikhr-fast tokenizer export` makes them control pieces"
            raise InputError(f"{file}: SentencePiece finds {named_tokens(found)} in text; {advice}")
        self.control = {p.piece: index for index, p in enumerate(model.pieces) if p.type in (CONTROL, UNKNOWN)}
        pieces = [piece.piece for piece in model.pieces if piece.type not in (CONTROL, UNKNOWN, BYTE)]
        self.words = [piece.replace("▁", " ") for piece in pieces]

    def encode(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._processor.encode(texts)
        return found

    def decode(self, rows: list[list[int]]) -> list[str]:
        found: list[str] = self._processor.decode(rows)
        return found


class _Library:
    """The peer of a byte-level tokenizer.json: the library `tokenizers`, by the file alone."""

    name = "tokenizers"

    def __init__(self, file: Path) -> None:
        self.ours = JsonEncoder.from_file(file)
        self._tokenizer = self.ours.tokenizer
        if not spells_bytes(self._tokenizer.pre_tokenizer):
            raise InputError(f"{file}: not byte-level, and no tokenizer.model beside it to compare with; give either")
        self.control = self.ours.control
        contents = [token_bytes(token) for token in self._tokenizer.get_vocab(with_added_tokens=False)]
        words = [text for content in contents if content and (text := content.decode("utf-8", "ignore"))]
        self.words = [*words, *sorted(self.ours.words)]

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [row.ids for row in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, rows: list[list[int]]) -> list[str]:
        return [self._tokenizer.decode(row) for row in rows]


class _Encoders:
    """One tokenizer, as its peer, this package and transformers load it."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        if directory.is_file():
            raise InputError(f"{directory}: not a directory; `vikhr-fast tokenizer export` makes one of a model file")
        self.directory, file = directory, find_tokenizer(directory)
        self.peer = _Library(file) if file.name == TOKENIZER_JSON else _SentencePiece(file)
        self.ours = self.peer.ours
        refuse_fatal(directory / TOKENIZER_JSON)
        logging.set_verbosity_error()  # no word about texts longer than a model's context
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

    def accepted_roles(self, chats: ChatEncoder) -> tuple[Role, ...]:
        """Those that chats may begin with: many templates refuse a system message."""
        (found,) = chats.encode_each([[Message(role, role) for role in ROLES]])
        return ("user",) if isinstance(found, InputError) else ("system", "user")

    def compare_chats(
        self, chats: ChatEncoder, some: list[list[Message]], encoded: list[EncodedChat | InputError], first: int
    ) -> int:
        """Raises InputError unless ids and masks of chats are those of transformers; returns the number of tokens."""
        has_mask, tokens = chats.template.has_generation_block, 0
        for number, (chat, ours) in enumerate(zip(some, encoded, strict=True), start=first + 1):
            if isinstance(ours, InputError):
                continue
            messages = [{"role": message.role, "content": message.content} for message in chat]
            place, text = f"generated chat {number}", "\n".join(message.content for message in chat)
            theirs = self.exported.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_assistant_tokens_mask=has_mask
            )
            self._same(theirs["input_ids"], ours.ids.tolist(), place, text, "vikhr_fast", "transformers")
            if has_mask and ours.is_trained.tolist() != list(map(bool, theirs["assistant_masks"])):
                raise InputError(
                    f"{self.directory}: {place}: another mask of what the assistant says: {text[:_SHOWN]!r}"
                )
            tokens += len(ours.ids)
        return tokens

    def _same(self, expected: list[int], found: list[int], place: str, text: str, name: str, peer: str = "") -> None:
        if expected == found:
            return
        at = next(index for index, (a, b) in enumerate(zip_longest(expected, found)) if a != b)
        ids = f"{peer or self.peer.name} {expected[at : at + 5]}, {name} {found[at : at + 5]}"
        rest = text if peer else text[len(self.peer.decode([expected[:at]])[0]) :]
        raise InputError(f"{self.directory}: {place}: token {at + 1}: {ids}, at {rest[:_SHOWN]!r}")


class _Strings:
    """Generates what is hard to encode; the same for a vocabulary."""

    def __init__(self, encoders: _Encoders) -> None:
        self._random = random.Random(0)
        self._pieces, self._control = encoders.peer.words, [*encoders.peer.control, "<0x41>", "<0x0A>"]

    def any(self) -> str:
        """A string of any kind, or several joined with control pieces as text between them."""
        parts = [self._random.choice((self._of_pieces, self._of_script, self._periodic, self._of_unicode))()]
        while self._random.random() < 0.3:
            parts += [self._random.choice([*self._control, " " * self._random.randint(1, 40), "\n"]), self.any()]
        return "".join(parts)

    def chat(self, roles: tuple[Role, ...]) -> list[Message]:
        """A system message or none, then up to three questions with their answers, and no control piece as text."""
        begin = self._random.choice(roles)
        turns: list[Role] = ["system"] if begin == "system" else []
        for _ in range(self._random.randint(1, 3)):
            turns += ["user", "assistant"]
        return [Message(role, self._without_control()) for role in turns]

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
