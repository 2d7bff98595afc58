"""Which token comes next."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vikhr_fast.errors import require


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_tokens: int = 512
    """Tokens after which an answer is broken off."""
    temperature: float = 0.0
    """0 always takes the likeliest token; 1 draws from the model's distribution."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens that have this probability together."""
    seed: int = 0
    """Of what is drawn; each prompt has its own draws, whatever others are answered with it."""
    stop: tuple[str, ...] = ()
    """Pieces that end an answer, besides EOS and the one that ends it in the chat template."""

    def refuse_impossible(self) -> None:
        """InputError for values out of range."""
        require(
            self,
            max_tokens=(self.max_tokens >= 1, "1 or more"),
            temperature=(0 <= self.temperature < float("inf"), "0 or more"),
            top_p=(0 < self.top_p <= 1, "above 0 and at most 1"),
            seed=(0 <= self.seed < 1 << 63, "0 or more, below 2^63"),
        )


def generator_of(seed: int, number: int) -> torch.Generator:
    """The draws of prompt `number`."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number & (1 << 63) - 1)


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row [B] int64, from logits [B, V] and each row's own draws."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = distribution(logits.double().cpu(), sampling.temperature, sampling.top_p)
    drawn = [
        torch.multinomial(row, 1, generator=generator) for row, generator in zip(probabilities, generators, strict=True)
    ]
    return torch.cat(drawn).to(logits.device)


def distribution(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities [B, V]: of each row the fewest likeliest tokens that have `top_p` together, renormalised."""
    ordered, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    ordered /= ordered.sum(-1, keepdim=True)
    return torch.zeros_like(ordered).scatter(-1, order, ordered)
