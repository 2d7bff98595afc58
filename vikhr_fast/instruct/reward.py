"""A reward model: an encoder with one output that says how good an answer to a prompt is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pydantic

from vikhr_fast.config import read_record
from vikhr_fast.encoder.classifier import MaximumTokens, Scorer, Scores, Token
from vikhr_fast.model.devices import Device

SETTINGS = "reward.json"


class Answered(NamedTuple):
    """A prompt and an answer to it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class _Settings:
    """What is read of SETTINGS."""

    maximum_tokens: MaximumTokens


_SETTINGS = pydantic.TypeAdapter(_Settings)


@dataclass(frozen=True)
class RewardModel:
    """Scores answers; only differences between scores mean something."""

    scorer: Scorer
    maximum_tokens: int

    @classmethod
    def load(cls, directory: Path, device: Device = "auto") -> "RewardModel":
        """Loads what `instruct train-reward` wrote.

        Raises:
            InputError: it is missing or something else, or there is no GPU for `cuda`.
        """
        advice = "no reward model without it; make one with `vikhr-fast instruct train-reward`"
        found = read_record(directory / SETTINGS, _SETTINGS, advice)
        return cls(Scorer.load(str(directory), device=device), found.maximum_tokens)

    def encode(self, texts: Sequence[Answered]) -> list[list[Token]]:
        """Prompt and answer as one sequence each; what is too long is cut off the longer of the two."""
        return self.scorer.encode(self.maximum_tokens, [one.prompt for one in texts], [one.answer for one in texts])

    def score(self, texts: Sequence[Answered], batch_tokens: int = 16_384) -> Scores:
        """float64 [texts], computed in batches of like length."""
        return self.scorer.score(self.encode(texts), batch_tokens)
