"""What chats need of a vocabulary, whichever kind it is: control pieces, roles, and the characters of each token."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vikhr_fast.errors import InputError
from vikhr_fast.tokenizer.added_tokens import OWN_WAY, named_as_special, read_roles
from vikhr_fast.tokenizer.bpe import BpeEncoder, Ids
from vikhr_fast.tokenizer.byte_level import spells_bytes, token_bytes
from vikhr_fast.tokenizer.export import BYTE, CONTROL, read_model, refuse_inexact, role_ids
from vikhr_fast.tokenizer.json_encoder import JsonEncoder
from vikhr_fast.tokenizer.load import Encoder, find_tokenizer

Positions = npt.NDArray[np.int64]


class ChatVocabulary(ABC):
    """A tokenizer as chats see it."""

    encoder: Encoder
    control: dict[str, int]
    """Ids of control pieces by text; a template puts them in, text that looks like them stays text."""
    changing: frozenset[str]
    """Those of them that change the text around, so that a chat with one can't be encoded stretch by stretch."""
    roles: dict[str, str]
    """What bos_token, eos_token and so on mean in a template."""
    named_roles: dict[str, str]
    """The same as the files name them, control pieces or not."""
    unknown: frozenset[str] = frozenset()
    """Texts that the files name as special tokens, which the vocabulary has not as such."""
    words: frozenset[str] = frozenset()
    """Added tokens that are found in text."""

    @abstractmethod
    def spans(self, ids: Ids, text: str) -> tuple[Positions, Positions]:
        """The characters of a text that each of its ids [T] stands for: from [T], to [T].

        A token in the middle of a character stands for that character.
        """


def chat_vocabulary(directory: Path) -> ChatVocabulary:
    """The tokenizer of a model's directory; InputError where it is missing or can't have chats."""
    file = find_tokenizer(directory)
    return ByteLevelChats(file) if file.suffix == ".json" else SentencePieceChats(file)


class SentencePieceChats(ChatVocabulary):
    """A tokenizer.model, with the control tokens that files beside it add."""

    def __init__(self, file: Path) -> None:
        self.encoder = encoder = BpeEncoder.from_file(file)
        model = read_model(file)
        refuse_inexact(model, file)  # the mask counts characters, none of which may be changed or lost
        own = {piece.piece: index for index, piece in enumerate(model.pieces) if piece.type == CONTROL}
        self.control, self.changing = own | encoder.added, encoder.changing
        self.roles = {f"{role}_token": model.pieces[index].piece for role, index in role_ids(model).items()}
        # What the template's eos_token means to transformers, where the files name another than the model does.
        self.named_roles = read_roles(file.parent)
        self.roles |= {role: piece for role, piece in self.named_roles.items() if piece in self.control}
        bytes_ = {index: int(piece.piece[3:5], 16) for index, piece in enumerate(model.pieces) if piece.type == BYTE}
        # Characters that begin in each piece; a byte in the middle of a character begins none.
        self._begun = np.array([len(piece.piece) for piece in model.pieces])
        self._begun[list(bytes_)] = [not 0x80 <= value < 0xC0 for value in bytes_.values()]

    def spans(self, ids: Ids, text: str) -> tuple[Positions, Positions]:  # noqa: ARG002  another vocabulary looks at it
        """As `ChatVocabulary.spans`."""
        begun = self._begun[ids]
        ends = np.cumsum(begun) - 1  # the ▁ in front is no character of the text
        return ends - np.maximum(begun, 1), ends


class ByteLevelChats(ChatVocabulary):
    """A tokenizer.json of byte-level BPE."""

    def __init__(self, file: Path) -> None:
        self.encoder = encoder = JsonEncoder.from_file(file)
        self._tokenizer: Any = encoder.tokenizer
        if not spells_bytes(self._tokenizer.pre_tokenizer):
            raise InputError(f"{file}: not byte-level; chats need byte-level BPE, or a tokenizer.model")
        special = [token for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        self.control, self.words = encoder.control, encoder.words
        self.changing = frozenset(token.content for token in special if self._changes(token)) & self.control.keys()
        self.named_roles = read_roles(file.parent)
        self.roles = {role: text for role, text in self.named_roles.items() if text in self.control}
        self.unknown = frozenset(named_as_special(file.parent)) - self.control.keys()
        self._missing = np.frombuffer(encoder.missing_bytes, np.uint8)
        added = encoder.control.keys() | encoder.words
        self._sizes = np.zeros(self.encoder.vocab_size, np.int64)  # bytes of each token
        for text, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            content = None if text in added else token_bytes(text)
            self._sizes[index] = len(text.encode() if content is None else content)

    def spans(self, ids: Ids, text: str) -> tuple[Positions, Positions]:
        """As `ChatVocabulary.spans`."""
        data = np.frombuffer(text.encode(), np.uint8)
        spelt = np.flatnonzero(~np.isin(data, self._missing))
        ends = np.cumsum(self._sizes[ids])
        normalizer = self._tokenizer.normalizer
        is_changed = normalizer is not None and normalizer.normalize_str(text) != text
        if not len(ids) or ends[-1] != len(spelt) or is_changed:
            return self._library_spans(text)
        begun = np.cumsum((data & 0xC0) != 0x80)[spelt]  # characters that have begun by each byte that has a token
        return begun[ends - self._sizes[ids]] - 1, begun[ends - 1]

    def _library_spans(self, text: str) -> tuple[Positions, Positions]:
        """Of a text that is changed before it is spelt."""
        found = self._tokenizer.encode(text, add_special_tokens=False).offsets
        starts, ends = np.array(found, np.int64).reshape(-1, 2).T
        before = np.append(0, ends[:-1])  # `trim_offsets` leaves spaces out
        return np.minimum(starts, before), ends

    def _changes(self, token: Any) -> bool:
        """Whether a special token looks at the text around it, or is looked for in normalised text."""
        own = [flag for flag in OWN_WAY if getattr(token, flag)]
        return bool(own) and (own != ["normalized"] or self._tokenizer.normalizer is not None)
