"""A reward model: an encoder with one output that says how good an answer to a prompt is."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vikhr_fast.corpus.classifier import Scores, device_of, load_encoder, score
from vikhr_fast.errors import InputError

SETTINGS = "reward.json"
_CHARACTERS_A_TOKEN = 16


class Answered(NamedTuple):
    """A prompt and an answer to it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class RewardModel:
    """Scores answers; only differences between scores mean something."""

    tokenizer: Any
    model: torch.nn.Module
    maximum_tokens: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> "RewardModel":
        """Loads what `instruct train-reward` wrote.

        Raises:
            InputError: it is missing or something else, or there is no GPU for `cuda`.
        """
        try:
            maximum_tokens = int(json.loads((directory / SETTINGS).read_bytes())["maximum_tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{directory}: no reward model; make one with `vikhr-fast instruct train-reward`"
            ) from None
        tokenizer, model = load_encoder(str(directory), None, new_head=False)
        place, dtype = device_of(device)
        return cls(tokenizer, model.to(place).eval(), maximum_tokens, place, dtype)

    def score(
        self, texts: Sequence[Answered], batch_tokens: int, advance: Callable[[int], None] = lambda _: None
    ) -> Scores:
        """float64 [texts], computed in batches of like length."""
        ids = encode(self.tokenizer, texts, self.maximum_tokens)
        return score(self.model, ids, self.tokenizer, self.device, self.dtype, batch_tokens, advance)


def encode(tokenizer: Any, texts: Sequence[Answered], maximum_tokens: int) -> list[list[int]]:
    """Prompt and answer as one sequence each; what is too long is cut off the longer of the two."""
    if not texts:
        return []
    longest = maximum_tokens * _CHARACTERS_A_TOKEN  # only as much is tokenized as can matter
    ids: list[list[int]] = tokenizer(
        [one.prompt[:longest] for one in texts],
        [one.answer[:longest] for one in texts],
        truncation="longest_first",
        max_length=maximum_tokens,
    )["input_ids"]
    return ids
