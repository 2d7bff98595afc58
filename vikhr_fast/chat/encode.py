"""Chats to token ids, and which of them are the assistant's.

The rule, the same in transformers with the exported files: control pieces go in by id, and each stretch of text
between two of them, be it the template's or a message's, is encoded as one text, in SentencePiece with its own `▁` in
front.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vikhr_fast.chat.template import ChatTemplate, Message, Part
from vikhr_fast.chat.vocabulary import chat_vocabulary
from vikhr_fast.errors import InputError
from vikhr_fast.io.console import logger
from vikhr_fast.tokenizer.chat_template import model_template

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class EncodedChat(NamedTuple):
    """A chat as the model sees it."""

    ids: Ids  # [T]
    is_trained: Mask  # [T] what the assistant says and is to learn, each time with the piece that ends it


class ChatEncoder:
    """Encodes chats with the tokenizer and the template of a model's directory.

    Args:
        directory: with tokenizer.model or a byte-level tokenizer.json, and a chat template.

    Raises:
        InputError: either is missing or cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._vocabulary = vocabulary = chat_vocabulary(directory)
        self.tokenizer = vocabulary.encoder
        source, name = model_template(directory)
        for texts, reason in (
            (
                vocabulary.changing,
                "lstrip, rstrip, normalized or single_word change the text around it; clear these flags",
            ),
            (vocabulary.unknown, "named as special, but no special token of the vocabulary; make it one"),
        ):
            roles = {role: text for role, text in vocabulary.named_roles.items() if text in texts}
            if used := sorted(
                {text for text in texts if text in source} | {roles[role] for role in roles if role in source}
            ):
                raise InputError(f"{name}: {', '.join(used)}: {reason} in the tokenizer's files")
        if found := sorted(text for text in vocabulary.words if text in source):
            logger.warning(f"{name}: {', '.join(found)}: no special tokens, so text that spells one becomes it")
        self.template = ChatTemplate(source, name, vocabulary.control.keys(), vocabulary.roles)
        turn = [Message("user", "?"), Message("assistant", "!")]
        ends = {end for chat in self.encode([turn, turn * 2]) for end in _ends_of_answers(chat)}
        if not ends or not ends <= set(vocabulary.control.values()):
            raise InputError(f"{name}: no control piece of this vocabulary ends what the assistant says")
        if len(ends) > 1:
            pieces = " and ".join(sorted(map(self.tokenizer.piece, ends)))
            raise InputError(f"{name}: answers end with {pieces}, and generation stops at one; take another template")
        (self.end_id,) = ends
        """The piece that ends what the assistant says."""
        if not self.template.has_generation_block:
            end = self.tokenizer.piece(self.end_id)
            guess = f"what the assistant says is taken to go from its message to the {end} behind it"
            logger.warning(f"{name}: has no generation block: {guess}")

    def encode(
        self, chats: Sequence[Sequence[Message]], add_generation_prompt: bool = False, threads: int = 0
    ) -> list[EncodedChat]:
        """As `encode_each`; raises InputError for the first chat that the template refuses."""
        found = []
        for chat in self.encode_each(chats, add_generation_prompt, threads):
            if isinstance(chat, InputError):
                raise InputError(str(chat))  # the template keeps the other
            found.append(chat)
        return found

    def encode_each(
        self, chats: Sequence[Sequence[Message]], add_generation_prompt: bool = False, threads: int = 0
    ) -> list[EncodedChat | InputError]:
        """Encodes chats; in place of one that the template refuses, or makes something else of, is the reason.

        Args:
            chats: messages of each.
            add_generation_prompt: end with what makes the model answer.
            threads: 0 is one a core; the result is the same for any number.

        Raises:
            ValueError: a message that is not valid Unicode.
        """
        found = self.template.parts(chats, add_generation_prompt)
        structures = [
            [list(group) for _, group in groupby(parts, key=lambda part: part.kind == "control")]
            for parts in found
            if not isinstance(parts, InputError)
        ]  # by turns control pieces, and text that is encoded as one
        texts = [
            "".join(part.value for part in parts) for stretches in structures for parts in stretches if _is_text(parts)
        ]
        ids, offsets = self.tokenizer.encode_batch(texts, threads=threads)
        encoded_texts = (ids[start:end] for start, end in pairwise(offsets))
        encoded = (self._joined(stretches, encoded_texts) for stretches in structures)
        return [parts if isinstance(parts, InputError) else next(encoded) for parts in found]

    def _joined(self, stretches: list[list[Part]], encoded_texts: Iterator[Ids]) -> EncodedChat:
        """A chat; its stretches of text come in turn out of `encoded_texts`."""
        pieces: list[EncodedChat] = []
        for parts in stretches:
            if _is_text(parts):
                own = next(encoded_texts)
                pieces.append(EncodedChat(own, self._trained(own, parts)))
            else:
                controls = np.array([self._vocabulary.control[part.value] for part in parts], np.int32)
                pieces.append(EncodedChat(controls, np.array([part.is_trained for part in parts])))
        return EncodedChat(*map(np.concatenate, zip(*pieces, strict=True)))

    def _trained(self, ids: Ids, parts: list[Part]) -> Mask:
        """[tokens of a stretch] those of which a character is the assistant's; a token belongs to one side whole."""
        if len({part.is_trained for part in parts}) == 1:
            return np.full(len(ids), parts[0].is_trained)
        starts, ends = self._vocabulary.spans(ids, "".join(part.value for part in parts))
        trained = np.zeros(len(ids), bool)
        position = 0
        for part in parts:
            after = position + len(part.value)
            if part.is_trained:
                trained |= (starts < after) & (ends > position)
            position = after
        return trained


def _ends_of_answers(chat: EncodedChat) -> list[int]:
    """The last trained token of each answer."""
    is_last = chat.is_trained & ~np.append(chat.is_trained[1:], False)
    return list(map(int, chat.ids[is_last]))


def _is_text(parts: list[Part]) -> bool:
    return parts[0].kind != "control"
