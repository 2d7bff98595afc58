"""A small encoder that tells good documents from bad ones: scores in batches of like length, calibrated."""

import copy
import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from pydantic import Field
from safetensors import SafetensorError

from vikhr_fast.config import read_record
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import sync_file
from vikhr_fast.model.devices import Device, device_of
from vikhr_fast.tokenizer.files import TOKENIZER_JSON
from vikhr_fast.tokenizer.json_encoder import library_errors, refuse_fatal

SETTINGS = "filter.json"
_CHARACTERS_A_TOKEN = 16
_KINDS = "token_type_ids"
_BINS = 10
_MOST_LAYERS, _LEAST_TOKENS = 1000, 8
_NUMBERS_A_BYTE = 4  # of two bits: no file holds a model in less
_NUMBERS_BESIDES = 1 << 26  # a new head and buffers, which no file holds
_SHOWN_TENSORS = 3

MaximumTokens = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
"""Of a text, that an encoder sees."""
Token = tuple[int, int]
"""Its id, and which of two texts it is of, 0 or 1, where an encoder of BERT's kind tells them apart."""
Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scorer:
    """An encoder with one output, and its tokenizer."""

    tokenizer: Any
    model: Any
    device: torch.device
    dtype: torch.dtype
    """What is computed in."""

    @classmethod
    def load(
        cls, name: str, revision: str | None = None, *, device: Device = "auto", has_new_head: bool = False
    ) -> "Scorer":
        """Loads both from a directory or the Hub.

        Args:
            name: the directory, or the name on the Hub.
            revision: on the Hub.
            device: auto is CUDA, in bfloat16, where there is a GPU.
            has_new_head: a head that is missing or of another size gives way to a random one.

        Raises:
            InputError: there is no such encoder, its weights are not those of its config.json, or there is no GPU for
                `cuda`.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig
        from transformers.utils import logging

        place, dtype = device_of(device)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        options: dict[str, Any] = {
            "revision": revision,
            "trust_remote_code": False,
            "local_files_only": Path(name).is_dir(),
        }
        refuse_fatal(Path(name) / TOKENIZER_JSON)
        with library_errors(f"{name}: no encoder that can be loaded", "give a transformers encoder"):
            values, _ = PreTrainedConfig.get_config_dict(name, **options)
            _refuse_layers(values.get("num_hidden_layers", 1))  # some configurations list all as they are made
            config = AutoConfig.from_pretrained(name, num_labels=1, **options)
            _refuse_layers(config.num_hidden_layers)  # which may have another name in the file
            _refuse_sizes(name, config)
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            # Without the first it names no tensor that it refuses.
            options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
            model, found = AutoModelForSequenceClassification.from_pretrained(name, config=config, **options)
            _refuse_random(name, model, found, has_new_head)
            scorer = cls(tokenizer, model.eval(), torch.device("cpu"), torch.float32)
            with torch.no_grad():
                scorer.logits(scorer.encode(_LEAST_TOKENS, [" "]))  # whether what could be loaded computes
        return cls(tokenizer, model.to(place), place, dtype)

    def save(self, directory: Path) -> None:
        """Writes both as transformers does. A full disk is the OSError that it is, where other libraries hide it."""
        try:
            self.model.to("cpu").save_pretrained(directory)
        except SafetensorError as error:
            if f"os error {errno.ENOSPC}" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from None
        self.tokenizer.save_pretrained(directory)
        for file in directory.iterdir():
            sync_file(file)

    def encode(self, maximum_tokens: int, *columns: Sequence[str]) -> list[list[Token]]:
        """The first tokens of each text, special ones included; of two columns as one sequence, the longer cut first.

        Only as much text is tokenized as can matter.
        """
        if not columns[0]:
            return []
        longest = maximum_tokens * _CHARACTERS_A_TOKEN
        shown = ([text[:longest] for text in column] for column in columns)
        found = self.tokenizer(*shown, truncation=True, max_length=maximum_tokens)
        kinds = found.get(_KINDS) or [[0] * len(ids) for ids in found["input_ids"]]
        return [list(zip(*row, strict=True)) for row in zip(found["input_ids"], kinds, strict=True)]

    def logits(self, texts: Sequence[Sequence[Token]]) -> torch.Tensor:
        """[texts] outputs of one forward, on the device."""
        longest = max(map(len, texts))
        pad = (self.tokenizer.pad_token_id or 0, 0)
        tokens = torch.tensor([[*one, *[pad] * (longest - len(one))] for one in texts], device=self.device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in texts], device=self.device)
        given = {"input_ids": tokens[..., 0], "attention_mask": mask}
        if _KINDS in self.tokenizer.model_input_names:
            given[_KINDS] = tokens[..., 1]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            output: torch.Tensor = self.model(**given).logits[:, 0]
        return output

    @torch.no_grad()
    def score(self, ids: Sequence[Sequence[Token]], batch_tokens: int = 16_384) -> Scores:
        """float64 [texts]: the logit of each, computed in batches of like length; InputError where one isn't finite."""
        self.model.eval()
        scores = np.zeros(len(ids))
        for rows in batches_by_length([len(one) for one in ids], batch_tokens):
            scores[rows] = self.logits([ids[row] for row in rows]).double().cpu().numpy()
        if bad := int((~np.isfinite(scores)).sum()):
            reason = "the encoder's weights hold NaN or infinity; make it again, with a lower learning rate"
            raise InputError(f"{bad:,} of {len(ids):,} scores are no finite numbers: {reason}")
        return scores


def _refuse_layers(layers: int) -> None:
    """Refuses a number of layers that would take for ever: all are built before weights are looked for."""
    if not 1 <= layers <= _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers}, must be 1 to {_MOST_LAYERS:,}")


def _refuse_sizes(name: str, config: Any) -> None:
    """Refuses a config.json that asks for a model by far larger than its files, before memory is taken for it.

    Files on the Hub are not here yet.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(copy.deepcopy(config), trust_remote_code=False)
    except KeyError as error:  # a table of transformers, of activations for one, has no such name
        keys = [key for key, value in config.to_dict().items() if value == error.args[0]]
        raise ValueError(f"{' or '.join(keys) or 'a key'} in config.json is {error}, which is unknown") from error
    wanted = sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))
    files = [file for file in Path(name).glob("*") if file.suffix in {".safetensors", ".bin"}]
    held = sum(file.stat().st_size for file in files)
    if Path(name).is_dir() and wanted > _NUMBERS_A_BYTE * held + _NUMBERS_BESIDES:
        raise InputError(
            f"{Path(name) / 'config.json'}: asks for {wanted:,} numbers, the files of weights beside it hold "
            f"{held:,} bytes; fetch all again"
        )


def _refuse_random(name: str, model: Any, found: dict[str, Any], has_new_head: bool) -> None:
    """Refuses a model for which transformers made up other weights than those of a new head."""
    wrong = dict.fromkeys(found["missing_keys"], "is missing")
    wrong |= {key: f"is {list(held)}, not {list(wanted)}" for key, held, wanted in found["mismatched_keys"]}
    if has_new_head:  # what the encoder alone lacks, and a pooler, which one of masked language modelling lacks, too
        base = f"{model.base_model_prefix}."
        wrong = {key: what for key, what in wrong.items() if key.startswith(base) and ".pooler." not in key}
    if wrong:
        shown = ", ".join(f"{key} {wrong[key]}" for key in sorted(wrong)[:_SHOWN_TENSORS])
        more = f", and {len(wrong) - _SHOWN_TENSORS:,} more" if len(wrong) > _SHOWN_TENSORS else ""
        raise InputError(
            f"{Path(name) / 'config.json'}: the weights beside it are of another model: {shown}{more}; fetch all again"
        )


@dataclass(frozen=True)
class _Settings:
    """What is read of SETTINGS."""

    __pydantic_config__ = pydantic.ConfigDict(allow_inf_nan=False)

    slope: float
    offset: float
    threshold: float
    maximum_tokens: MaximumTokens


_SETTINGS = pydantic.TypeAdapter(_Settings)


@dataclass(frozen=True)
class Classifier:
    """A trained classifier of documents.

    The probability that a document is good is sigmoid(slope * logit + offset): calibrated on held-out documents.
    """

    scorer: Scorer
    slope: float
    offset: float
    threshold: float
    maximum_tokens: int

    @classmethod
    def load(cls, directory: Path, device: Device = "auto") -> "Classifier":
        """Loads what `corpus train-filter` wrote.

        Raises:
            InputError: it is missing or something else, or there is no GPU for `cuda`.
        """
        advice = "no classifier without it; make one with `vikhr-fast corpus train-filter`"
        found = read_record(directory / SETTINGS, _SETTINGS, advice)
        return cls(Scorer.load(str(directory), device=device), **vars(found))

    def probabilities(self, texts: Sequence[str], batch_tokens: int) -> Scores:
        """float64 [texts]: how probably each is good."""
        ids = self.scorer.encode(self.maximum_tokens, texts)
        return calibrated(self.scorer.score(ids, batch_tokens), self.slope, self.offset)


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows in batches of at most `batch_tokens` with padding, or of one; the longest first, where memory shows."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def calibrated(logits: Scores, slope: float, offset: float) -> Scores:
    """Probabilities of logits."""
    return 1 / (1 + np.exp(-np.clip(slope * logits + offset, -60, 60)))


def calibrate(logits: Scores, labels: Labels) -> tuple[float, float]:
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
    def of(cls, is_kept: Labels, is_good: Labels) -> "Quality":
        """Compares what was kept with what is good."""

        def scores(found: Labels, wanted: Labels) -> tuple[float, float, float]:
            hits = int((found & wanted).sum())
            precision = hits / max(int(found.sum()), 1)
            recall = hits / max(int(wanted.sum()), 1)
            return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)

        _, noise_recall, noise_f1 = scores(~is_kept, ~is_good)
        return cls(len(is_kept), int(is_kept.sum()), *scores(is_kept, is_good), noise_recall, noise_f1)


def calibration(probabilities: Scores, labels: Labels) -> tuple[tuple[float, float, int], ...]:
    """Of each tenth of the probabilities that has any: their mean, the share of good ones, and how many there are."""
    places = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    bins = [places == number for number in range(_BINS)]
    return tuple((float(probabilities[b].mean()), float(labels[b].mean()), int(b.sum())) for b in bins if b.any())


def expected_calibration_error(probabilities: Scores, labels: Labels) -> float:
    """Mean distance of probability and share of good documents over bins of probability, weighted by their size."""
    bins = calibration(probabilities, labels)
    return float(sum(abs(predicted - observed) * (count / len(labels)) for predicted, observed, count in bins))
