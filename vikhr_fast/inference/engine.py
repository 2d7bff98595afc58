"""From chats to answers: a model, its tokenizer and template, and the loop that adds token after token."""

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


class Answer(NamedTuple):
    """What a model answered."""

    text: str
    ids: list[int]
    """Without what ended it."""
    is_complete: bool
    """Whether the model ended it itself."""


class Engine:
    """A model that answers chats.

    Args:
        directory: Hugging Face directory with tokenizer.model and chat_template.jinja.
        device: auto is CUDA, in bfloat16, where there is a GPU, else the CPU in float32.

    Raises:
        InputError: anything is missing or cannot be used.
    """

    def __init__(self, directory: Path, device: Device = "auto") -> None:
        self.encoder = ChatEncoder(directory)
        place, dtype = device_of(device)
        self.model = Mistral.from_pretrained(directory, dtype, place).requires_grad_(False)
        config = self.model.config
        if self.encoder.bpe.vocab_size > config.vocab_size:
            raise InputError(f"{directory}: the tokenizer has more pieces than the model rows; give its own tokenizer")
        self.positions = config.max_position_embeddings

    def prompt(self, chat: Sequence[Message]) -> list[int]:
        """The ids that make the model answer a chat.

        Raises:
            InputError: it is not text, or leaves no room for an answer.
        """
        try:
            ids: list[int] = self.encoder.encode([chat], add_generation_prompt=True)[0].ids.tolist()
        except ValueError as error:
            raise InputError(f"the prompt is not valid text: {error}") from None
        if len(ids) >= self.positions:
            raise InputError(f"the prompt takes {len(ids):,} tokens, the model has {self.positions:,} positions")
        return ids

    def stop_ids(self, sampling: Sampling) -> set[int]:
        """What ends an answer."""
        found = {self.encoder.end_id, self.encoder.bpe.eos_id}
        for piece in sampling.stop:
            try:
                found.add(self.encoder.bpe.piece_to_id(piece))
            except KeyError:
                raise InputError(f"--stop {piece!r}: not a piece of the vocabulary") from None
        return found

    def stream(
        self, prompts: Sequence[list[int]], sampling: Sampling, numbers: Sequence[int]
    ) -> Iterator[dict[int, int]]:
        """Yields each step's new tokens by row, those that end an answer included.

        Args:
            prompts: at least one, each of `prompt`.
            sampling: how to draw.
            numbers: of each prompt, which its draws depend on.
        """
        stop, bpe = self.stop_ids(sampling), self.encoder.bpe
        padding = sorted(set(range(bpe.num_pieces, self.model.config.vocab_size)) - set(bpe.added.values()))
        room = [min(sampling.max_tokens, self.positions - len(prompt)) for prompt in prompts]
        cache = KeyValueCache(len(prompts), max(map(sum, zip(map(len, prompts), room, strict=True))))
        rows, read = list(range(len(prompts))), list(prompts)
        generators = [generator_of(sampling.seed, number) for number in numbers]
        for taken in itertools.count(1):
            logits = self.model.logits(torch.stack([hidden[-1] for hidden in self.model.extend(read, cache)]))
            logits[:, padding] = -torch.inf  # rows of the model that are no token's
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
            answers.append(Answer(self.encoder.bpe.decode(kept), kept, is_complete))
        return answers


def shown_text(encoder: ChatEncoder, ids: list[int]) -> str:
    """What of an unfinished answer can be shown: not the bytes of a character that isn't complete yet."""
    return encoder.bpe.decode(ids).rstrip("\ufffd")
