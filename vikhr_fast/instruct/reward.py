"""A reward model: an encoder with one output that says how good an answer to a prompt is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vikhr_fast.encoder.classifier import Scorer, Scores
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import read_json
from vikhr_fast.model.devices import Device

SETTINGS = "reward.json"


class Answered(NamedTuple):
    """A prompt and an answer to it."""

    prompt: str
    answer: str


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
        try:
            maximum_tokens = int(read_json(directory / SETTINGS)["maximum_tokens"])
        except (InputError, ValueError, KeyError, TypeError):
            advice = "make one with `vikhr-fast instruct train-reward`"
            raise InputError(f"{directory}: no reward model; {advice}") from None
        return cls(Scorer.load(str(directory), device=device), maximum_tokens)

    def encode(self, texts: Sequence[Answered]) -> list[list[int]]:
        """Prompt and answer as one sequence each; what is too long is cut off the longer of the two."""
        return self.scorer.encode(self.maximum_tokens, [one.prompt for one in texts], [one.answer for one in texts])

    def score(self, texts: Sequence[Answered], batch_tokens: int = 16_384) -> Scores:
        """float64 [texts], computed in batches of like length."""
        return self.scorer.score(self.encode(texts), batch_tokens)
