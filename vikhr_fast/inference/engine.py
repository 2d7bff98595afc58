"""From prompts to answers: a model, its tokenizer, and the loop that adds token after token."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vikhr_fast.chat.encode import ChatEncoder
from vikhr_fast.chat.template import Message
from vikhr_fast.errors import InputError
from vikhr_fast.inference.sampling import Sampling, choose, generator_of
from vikhr_fast.model.devices import Device, device_of
from vikhr_fast.model.key_value_cache import KeyValueCache
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import Encoder, load_encoder


class Answer(NamedTuple):
    """What a model answered."""

    text: str
    ids: list[int]
    """Without what ended it."""
    is_complete: bool
    """Whether the model ended it itself."""


class Engine:
    """A model that goes on with what it is given.

    Args:
        directory: Hugging Face directory with its tokenizer.
        device: auto is CUDA, in bfloat16, where there is a GPU, else the CPU in float32.
        tokenizer: that of the directory, where it is loaded already.

    Raises:
        InputError: anything is missing or cannot be used.
    """

    def __init__(self, directory: Path, device: Device = "auto", tokenizer: Encoder | None = None) -> None:
        self.tokenizer = tokenizer or load_encoder(directory)
        place, dtype = device_of(device)
        self.model = Mistral.from_pretrained(directory, dtype, place).requires_grad_(False)
        config = self.model.config
        if self.tokenizer.vocab_size > config.vocab_size:
            raise InputError(f"{directory}: the tokenizer has more pieces than the model rows; give its own tokenizer")
        self.positions = config.max_position_embeddings
        self.end_ids = {self.tokenizer.eos_id}
        """What ends an answer, whatever the sampling says."""
        self._tokens = self.tokenizer.ids()

    def require_room(self, ids: list[int]) -> list[int]:
        """The ids of a prompt; InputError where the model has no position left behind them."""
        if len(ids) >= self.positions:
            raise InputError(f"the prompt takes {len(ids):,} tokens, the model has {self.positions:,} positions")
        return ids

    def stop_ids(self, sampling: Sampling) -> set[int]:
        """What ends an answer."""
        found = set(self.end_ids)
        for piece in sampling.stop:
            try:
                found.add(self.tokenizer.piece_to_id(piece))
            except KeyError:
                raise InputError(f"--stop {piece!r}: not a piece of the vocabulary") from None
        return found

    def stream(
        self, prompts: Sequence[list[int]], sampling: Sampling, numbers: Sequence[int]
    ) -> Iterator[dict[int, int]]:
        """Yields each step's new tokens by row, those that end an answer included.

        Args:
            prompts: at least one, ids of each.
            sampling: how to draw.
            numbers: of each prompt, which its draws depend on.
        """
        stop = self.stop_ids(sampling)
        padding = sorted(set(range(self.model.config.vocab_size)) - self._tokens)
        room = [min(sampling.max_tokens, self.positions - len(prompt)) for prompt in prompts]
        cache = KeyValueCache(len(prompts), max(map(sum, zip(map(len, prompts), room, strict=True))))
        rows, read = list(range(len(prompts))), list(prompts)
        generators = [generator_of(sampling.seed, number) for number in numbers]
        for taken in itertools.count(1):
            logits = self.model.logits(torch.stack([hidden[-1] for hidden in self.model.extend(read, cache)]))
            logits[:, padding] = -torch.inf
            chosen = choose(logits, sampling, [generators[row] for row in rows]).tolist()
            yield dict(zip(rows, chosen, strict=True))
            going = [at for at, row in enumerate(rows) if chosen[at] not in stop and taken < room[row]]
            if not going:
                return
            if len(going) < len(rows):
                cache.select(going)
            rows, read = [rows[at] for at in going], [[chosen[at]] for at in going]

    def answer(
        self, prompts: Sequence[list[int]], sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> list[Answer]:
        """The answers to prompts, made together."""
        stop = self.stop_ids(sampling)
        ids: list[list[int]] = [[] for _ in prompts]
        for step in self.stream(prompts, sampling, numbers or range(len(prompts))):
            for row, token in step.items():
                ids[row].append(token)
        answers = []
        for own in ids:
            is_complete = own[-1] in stop
            kept = own[:-1] if is_complete else own
            answers.append(Answer(self.tokenizer.decode(kept), kept, is_complete))
        return answers


class ChatEngine(Engine):
    """A model that answers chats; arguments and errors as those of `Engine`, and the chat template's."""

    def __init__(self, directory: Path, device: Device = "auto") -> None:
        self.encoder = ChatEncoder(directory)
        super().__init__(directory, device, self.encoder.tokenizer)
        self.end_ids.add(self.encoder.end_id)

    def prompt(self, chat: Sequence[Message]) -> list[int]:
        """The ids that make the model answer a chat.

        Raises:
            InputError: it is not text, or leaves no room for an answer.
        """
        try:
            return self.require_room(self.encoder.encode([chat], add_generation_prompt=True)[0].ids.tolist())
        except ValueError as error:
            raise InputError(f"the prompt is not valid text: {error}") from None


def shown_text(tokenizer: Encoder, ids: list[int]) -> str:
    """What of an unfinished answer can be shown: not the bytes of a character that isn't complete yet."""
    return tokenizer.decode(ids).rstrip("\ufffd")
