"""The vocabularies of an adaptation, of either kind: what their tokens mean, and how one spells another's."""

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sentencepiece import SentencePieceProcessor

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import write_json
from vikhr_fast.io.guarded import read_json
from vikhr_fast.tokenizer.added_tokens import AddedTokens, read_added_tokens, refuse_added
from vikhr_fast.tokenizer.byte_level import readable, token_bytes
from vikhr_fast.tokenizer.export import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    export_tokenizer,
    find_model,
    read_model,
    refuse_inexact,
    role_ids,
)
from vikhr_fast.tokenizer.files import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    tokenizer_file,
)
from vikhr_fast.tokenizer.json_encoder import JsonEncoder

_MULTIPLES = tuple(2**power for power in range(10))  # what people pad the rows of a matrix to
_MOST_SPARE = 1024  # rows that a byte-level base has for tokens to come (Qwen2's 271)


Kind: TypeAlias = Literal["text", "byte", "control", "unknown", "other"]
_KINDS: dict[int, Kind] = {NORMAL: "text", UNKNOWN: "unknown", CONTROL: "control"}


@dataclass(frozen=True)
class Token:
    """What an id means."""

    kind: Kind
    text: str
    """As the vocabulary has it; that of a byte-level one as SentencePiece would."""
    content: bytes
    """What it stands for in a text, or is called."""

    @property
    def is_byte(self) -> bool:
        """Whether it is one byte of a character that has several."""
        return self.kind == "byte" or (self.kind == "text" and len(self.content) == 1 and not self.content.isascii())


class Vocabulary(ABC):
    """A vocabulary, by its tokens."""

    file: Path
    tokens: list[Token | None]
    """By id; None where an id is no token's."""
    roles: dict[str, int]
    """Ids of the tokens that are "unk", "bos", "eos" and "pad", of those that there are."""
    added_tokens: dict[str, int]
    """Those that aren't of the vocabulary's text."""

    @cached_property
    def ids(self) -> dict[tuple[str, str], int]:
        """By kind and text."""
        return {(token.kind, token.text): index for index, token in enumerate(self.tokens) if token is not None}

    @abstractmethod
    def find(self, token: Token) -> int | None:
        """The id that means the same as a token of another vocabulary."""

    @abstractmethod
    def spell(self, token: Token) -> list[int]:
        """The ids that stand for the text of a token of another vocabulary; empty where bytes of it have no token."""

    @property
    @abstractmethod
    def byte_ids(self) -> dict[int, int]:
        """The ids of tokens of one byte, by the byte."""

    @abstractmethod
    def export(self, directory: Path, roles: dict[str, str]) -> None:
        """Writes the tokenizer's files; a byte-level one's with the tokens given as "bos" and "eos"."""

    @abstractmethod
    def padding_rows(self, rows: int) -> int:
        """How many rows of matrices belong to no token; InputError where these can't be mere padding."""


class SentencePieceVocabulary(Vocabulary):
    """A tokenizer.model, with the control tokens that files beside it add."""

    def __init__(self, file: Path, *, added: AddedTokens) -> None:
        self.file, self.added, self.model = file, added, read_model(file)
        self.roles = role_ids(self.model)
        self.tokens = list(map(_piece, self.model.pieces))
        self.added_tokens = added.all() | added.without_row
        if sum(piece.type == BYTE for piece in self.model.pieces) != 256:
            raise InputError(f"{file}: it has no byte_fallback, so new pieces cannot be spelt; use a base that has")

    @classmethod
    def of_base(cls, file: Path) -> "SentencePieceVocabulary":
        """Of the weights that are adapted."""
        return cls(file, added=read_added_tokens(file, [piece.piece for piece in read_model(file).pieces]))

    @classmethod
    def of_new(cls, file: Path) -> "SentencePieceVocabulary":
        """To adapt to; InputError where other tools wouldn't have its ids."""
        model = read_model(file)
        refuse_inexact(model, file)
        refuse_added(file, [piece.piece for piece in model.pieces])
        return cls(file, added=AddedTokens())

    @cached_property
    def _processor(self) -> SentencePieceProcessor:
        """Segments a stretch of text where it stands: with its own word boundaries, none added in front."""
        inner = type(self.model)()
        inner.CopyFrom(self.model)
        inner.normalizer_spec.add_dummy_prefix = False
        inner.normalizer_spec.remove_extra_whitespaces = False
        return SentencePieceProcessor(model_proto=inner.SerializeToString())

    def find(self, token: Token) -> int | None:
        """As `Vocabulary.find`."""
        found = self.ids.get((token.kind, token.text))
        return self.added.control.get(token.text) if found is None and token.kind == "control" else found

    def spell(self, token: Token) -> list[int]:
        """As `Vocabulary.spell`; text that the normalisation deletes is spelt in bytes."""
        text = token.text.replace("▁", " ")
        spelt: list[int] = self._processor.encode(text)
        return spelt or [self.byte_ids[byte] for byte in text.encode("utf-8")]

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """As `Vocabulary.byte_ids`."""
        return {token.content[0]: index for index, token in enumerate(self.tokens) if token and token.kind == "byte"}

    def export(self, directory: Path, roles: dict[str, str]) -> None:  # noqa: ARG002  it says its own
        """As `Vocabulary.export`."""
        export_tokenizer(self.file, directory)

    def padding_rows(self, rows: int) -> int:
        """As `Vocabulary.padding_rows`."""
        known = 1 + max([len(self.tokens) - 1, *self.added.all().values()])
        if not any(rows == -(-known // multiple) * multiple for multiple in _MULTIPLES):
            tokens = f"{len(self.tokens)} pieces"
            tokens += f" and {len(self.added.all())} added tokens" if known > len(self.tokens) else ""
            advice = "give the tokenizer that the base was trained with, and its added_tokens.json where it has one"
            raise InputError(f"{self.file}: {tokens}, but the weights have {rows} rows, which is no padding; {advice}")
        return rows - len(self.tokens) - len(self.added.all())


class ByteLevelVocabulary(Vocabulary):
    """A tokenizer.json of byte-level BPE."""

    def __init__(self, file: Path, roles: dict[str, str] | None = None) -> None:
        """Takes the tokens that begin and end a text, "bos" and "eos", by their texts.

        InputError where there is no such token, or the tokenizer is of another kind.
        """
        self.file, self._encoder = file, JsonEncoder.from_file(file)
        library = self._encoder.tokenizer
        self.tokens = [None] * self._encoder.vocab_size
        for text, index in library.get_vocab(with_added_tokens=False).items():
            content = token_bytes(text)
            self.tokens[index] = (
                Token("other", text, text.encode()) if content is None else Token("text", readable(text), content)
            )
        for index, added in library.get_added_tokens_decoder().items():
            self.tokens[index] = Token("control" if added.special else "other", added.content, added.content.encode())
        self.added_tokens = {token.content: index for index, token in library.get_added_tokens_decoder().items()}
        self._ids = {token.content: index for index, token in enumerate(self.tokens) if token and token.kind == "text"}
        if not self.byte_ids:
            raise InputError(f"{file}: no token of one byte, so it isn't byte-level BPE; take another")
        self.roles = {}
        for role, text in (roles or {}).items():
            found = library.token_to_id(text)
            if found is None:
                known = ", ".join(token.text for token in self.tokens if token and token.kind == "control")
                raise InputError(f"--base-{role} {text}: no token of {file}; its control tokens are {known}")
            self.roles[role] = found

    def find(self, token: Token) -> int | None:
        """As `Vocabulary.find`."""
        if token.kind in ("text", "byte"):
            return self._ids.get(token.content)
        return self.ids.get((token.kind, token.text))

    def spell(self, token: Token) -> list[int]:
        """As `Vocabulary.spell`."""
        try:
            text = token.content.decode()
        except UnicodeDecodeError:  # a part of a character
            return self._encoder.merge(token.content)
        return [int(index) for index in self._encoder.encode(text)]

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """As `Vocabulary.byte_ids`."""
        return {content[0]: index for content, index in self._ids.items() if len(content) == 1}

    def export(self, directory: Path, roles: dict[str, str]) -> None:
        """As `Vocabulary.export`, copies of them, without a tokenizer.model that may be beside them."""
        shutil.copyfile(self.file, directory / TOKENIZER_JSON)
        for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, CHAT_TEMPLATE):
            if (path := self.file.with_name(name)).is_file():
                shutil.copyfile(path, directory / name)
        named = {f"{role}_token": text for role, text in roles.items()}
        for file in (directory / TOKENIZER_CONFIG, directory / SPECIAL_TOKENS):
            if named and (file.name == TOKENIZER_CONFIG or file.exists()):
                write_json(file, (read_json(file) if file.exists() else {}) | named)

    def padding_rows(self, rows: int) -> int:
        """As `Vocabulary.padding_rows`."""
        if not 0 <= rows - len(self.tokens) <= _MOST_SPARE:
            reason = f"{len(self.tokens)} tokens, but the weights have {rows} rows"
            raise InputError(f"{self.file}: {reason}; give the tokenizer.json that the base was trained with")
        return rows - sum(token is not None for token in self.tokens)


def _piece(piece: Any) -> Token:
    text = str(piece.piece)
    if piece.type == BYTE:
        return Token("byte", text, bytes([int(text[3:5], 16)]))
    return Token(_KINDS.get(piece.type, "other"), text, text.replace("▁", " ").encode("utf-8"))


def base_vocabulary(base: Path, roles: dict[str, str]) -> Vocabulary:
    """That of the weights in a directory.

    Args:
        base: the directory.
        roles: for a byte-level one, the tokens that begin and end a text, "bos" and "eos".
    """
    file = tokenizer_file(base) if base.is_dir() else None
    if file is not None and file.name == TOKENIZER_JSON:
        return ByteLevelVocabulary(file, roles)
    vocabulary = SentencePieceVocabulary.of_base(find_model(base))
    if roles:
        given = ", ".join(f"--base-{role}" for role in roles)
        raise InputError(f"{given}: {vocabulary.file} says which piece begins and ends a text; leave it out")
    return vocabulary


def new_vocabulary(path: Path) -> Vocabulary:
    """That of a tokenizer: a directory, or a file in one."""
    file = tokenizer_file(path) if path.is_dir() else path
    if file is not None and file.suffix == ".json":
        return ByteLevelVocabulary(file)
    return SentencePieceVocabulary.of_new(find_model(path))


def require_fitting(base: Vocabulary, new: Vocabulary) -> None:
    """Raises InputError unless the rows of one can be made of the rows of the other."""
    if isinstance(new, ByteLevelVocabulary):
        if not isinstance(base, ByteLevelVocabulary):
            advice = "train or extend a SentencePiece one with `vikhr-fast tokenizer`"
            raise InputError(f"{new.file}: byte-level, but {base.file} is a SentencePiece vocabulary; {advice}")
        for index, (old, kept) in enumerate(zip_longest(base.tokens, new.tokens)):
            if old is not None and old != kept:
                reason = f"id {index} is {kept.text if kept else None!r}, but {old.text!r} in {base.file}"
                raise InputError(f"{new.file}: {reason}; `vikhr-fast tokenizer extend` makes one that keeps its ids")
    elif isinstance(base, ByteLevelVocabulary) and (missing := {"bos", "eos"} & set(new.roles) - set(base.roles)):
        wanted = " and ".join(f"--base-{role}" for role in sorted(missing))
        control = ", ".join(token.text for token in base.tokens if token is not None and token.kind == "control")
        advice = f"name those which begin and end a text in pre-training, none of its chat tokens: {control}"
        raise InputError(f"{wanted}: {base.file} doesn't say what its tokens are for; {advice}")
