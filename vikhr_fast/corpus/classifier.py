"""A small encoder that tells good documents from bad ones: scores in batches of like length, calibrated."""

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError

from vikhr_fast.errors import InputError
from vikhr_fast.files import sync_file

SETTINGS = "filter.json"

Scores = npt.NDArray[np.float64]


def load_encoder(name: str, revision: str | None, *, new_head: bool) -> tuple[Any, Any]:
    """Tokenizer and encoder with one output, from a directory or the Hub.

    Args:
        name: the directory, or the name on the Hub.
        revision: on the Hub.
        new_head: a head of another size gives way to a random one.

    Raises:
        InputError: there is no such encoder.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": False,
        "local_files_only": Path(name).is_dir(),
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        options["ignore_mismatched_sizes"] = new_head
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: no encoder that can be loaded: {reason[:300]}") from None
    return tokenizer, model


def save_encoder(directory: Path, model: Any, tokenizer: Any) -> None:
    """Writes both as transformers does. A full disk is the OSError that it is, where other libraries hide it."""
    try:
        model.to("cpu").save_pretrained(directory)
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from None
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        sync_file(file)


@dataclass(frozen=True)
class Classifier:
    """A trained classifier of documents.

    The probability that a document is good is sigmoid(slope * logit + offset): calibrated on held-out documents.
    """

    tokenizer: Any
    model: torch.nn.Module
    slope: float
    offset: float
    threshold: float
    maximum_tokens: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(cls, directory: Path, device: str = "auto") -> "Classifier":
        """Loads what `corpus train-filter` wrote.

        Raises:
            InputError: it is missing or something else, or there is no GPU for `cuda`.
        """
        try:
            settings = json.loads((directory / SETTINGS).read_bytes())
            slope, offset, threshold = (float(settings[name]) for name in ("slope", "offset", "threshold"))
            maximum_tokens = int(settings["maximum_tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{directory}: no classifier; make one with `vikhr-fast corpus train-filter`") from None
        tokenizer, model = load_encoder(str(directory), None, new_head=False)
        place, dtype = device_of(device)
        return cls(tokenizer, model.to(place).eval(), slope, offset, threshold, maximum_tokens, place, dtype)

    def probabilities(
        self, texts: Sequence[str], batch_tokens: int, advance: Callable[[int], None] = lambda _: None
    ) -> Scores:
        """float64 [texts]: how probably each is good."""
        logits = score(self.model, self.encode(texts), self.tokenizer, self.device, self.dtype, batch_tokens, advance)
        return calibrated(logits, self.slope, self.offset)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The first tokens of each text."""
        return encode(self.tokenizer, texts, self.maximum_tokens)


def device_of(name: str) -> tuple[torch.device, torch.dtype]:
    """The device of `auto`, `cpu` or `cuda`, and what to compute in there."""
    is_cuda = torch.cuda.is_available() if name == "auto" else name == "cuda"
    if is_cuda and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch finds no GPU; take auto or cpu")
    return (torch.device("cuda"), torch.bfloat16) if is_cuda else (torch.device("cpu"), torch.float32)


def encode(tokenizer: Any, texts: Sequence[str], maximum_tokens: int) -> list[list[int]]:
    """The first tokens of each text, special ones included. Only as much text is tokenized as can matter."""
    if not texts:
        return []
    shown = [text[: maximum_tokens * 16] for text in texts]
    ids: list[list[int]] = tokenizer(shown, truncation=True, max_length=maximum_tokens)["input_ids"]
    return ids


@torch.no_grad()
def score(
    model: torch.nn.Module,
    ids: Sequence[Sequence[int]],
    tokenizer: Any,
    device: torch.device,
    dtype: torch.dtype,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Scores:
    """float64 [texts]: the logit of each, computed in batches of like length."""
    logits = np.zeros(len(ids))
    for rows in batches_by_length([len(one) for one in ids], batch_tokens):
        tokens, mask = padded([ids[row] for row in rows], tokenizer.pad_token_id or 0)
        autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
        with autocast:
            output = model(input_ids=tokens.to(device), attention_mask=mask.to(device)).logits
        logits[rows] = output[:, 0].double().cpu().numpy()
        advance(len(rows))
    return logits


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows in batches of at most `batch_tokens` with padding, or of one; the longest first, where memory shows."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(ids: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [texts, longest] tokens and their mask."""
    longest = max(map(len, ids))
    tokens = torch.tensor([[*one, *[pad] * (longest - len(one))] for one in ids])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids])
    return tokens, mask


def calibrated(logits: Scores, slope: float, offset: float) -> Scores:
    """Probabilities of logits."""
    return 1 / (1 + np.exp(-np.clip(slope * logits + offset, -60, 60)))


def calibrate(logits: Scores, labels: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset with the least cross-entropy (Platt's scaling, with his targets, which keep them finite)."""
    good, bad = int(labels.sum()), int((~labels).sum())
    targets = np.where(labels, (good + 1) / (good + 2), 1 / (bad + 2))
    slope, offset = 1.0, 0.0

    def loss(at: npt.NDArray[np.float64]) -> float:
        value = at[0] * logits + at[1]
        return float(np.mean(np.logaddexp(0, value) - targets * value))

    at = np.array([slope, offset])
    for _ in range(100):
        p = calibrated(logits, at[0], at[1])
        gradient = np.array([np.mean((p - targets) * logits), np.mean(p - targets)])
        weight = p * (1 - p)
        hessian = np.array(
            [
                [np.mean(weight * logits**2), np.mean(weight * logits)],
                [np.mean(weight * logits), np.mean(weight)],
            ]
        ) + 1e-10 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while loss(at - scale * step) > loss(at) and scale > 1e-6:
            scale /= 2
        at = at - scale * step
        if np.abs(scale * step).max() < 1e-9:
            break
    # A classifier that ranks the wrong way round is not turned: its report must show it.
    return (float(at[0]), float(at[1])) if at[0] > 0 and math.isfinite(at.sum()) else (1.0, 0.0)


@dataclass(frozen=True)
class Quality:
    """How well documents are told apart at a threshold."""

    documents: int
    kept: int
    precision: float
    """Share of good ones among those kept."""
    recall: float
    """Share of those kept among the good ones."""
    f1: float
    noise_recall: float
    """Share of those removed among the bad ones."""
    noise_f1: float
    """F1 of finding the bad ones."""

    @classmethod
    def of(cls, is_kept: npt.NDArray[np.bool_], is_good: npt.NDArray[np.bool_]) -> "Quality":
        """Compares what was kept with what is good."""

        def scores(found: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
            hits = int((found & wanted).sum())
            precision = hits / max(int(found.sum()), 1)
            recall = hits / max(int(wanted.sum()), 1)
            return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)

        _, noise_recall, noise_f1 = scores(~is_kept, ~is_good)
        return cls(len(is_kept), int(is_kept.sum()), *scores(is_kept, is_good), noise_recall, noise_f1)


def expected_calibration_error(probabilities: Scores, labels: npt.NDArray[np.bool_], bins: int = 10) -> float:
    """Mean distance of probability and share of good documents over bins of probability, weighted by their size."""
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        abs(probabilities[places == b].mean() - labels[places == b].mean()) * (places == b).mean()
        for b in range(bins)
        if (places == b).any()
    ]
    return float(sum(gaps))
