"""`instruct train-reward`: a reward model learnt from preferences by the Bradley-Terry model.

P(chosen is better) = sigmoid(score(chosen) - score(rejected)); its log-likelihood is maximised.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from tyro.conf import Positional

from vikhr_fast.data.splits import is_within
from vikhr_fast.encoder.classifier import Scorer
from vikhr_fast.encoder.training import CHECKPOINT, EncoderTraining
from vikhr_fast.errors import InputError, require
from vikhr_fast.instruct.preferences import Pair, read_pairs
from vikhr_fast.instruct.rejected import Rejected
from vikhr_fast.instruct.reward import SETTINGS, Answered, RewardModel
from vikhr_fast.instruct.reward_report import reward_page, reward_report
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import json_text, refuse_existing, sha256_of, write_json
from vikhr_fast.io.html import write_report
from vikhr_fast.io.resumable import resumable_directory, scratch_of


@dataclass(frozen=True)
class TrainReward:
    """Trains a reward model on preferences: an encoder with one output.

    Prompts and answers are text or messages, and the answers may hold the whole chat; then what both begin with is the
    prompt. Rows without text, without an answer, or with two equal ones are in OUTPUT/rejected.jsonl with the reason.
    OUTPUT/report.html has the accuracy on held-out pairs, what length explains of it, and the calibration.
    """

    input: Annotated[tuple[Path, ...], Positional]
    """Preferences: files (.jsonl, .json, .parquet), patterns, or raw files of a data set of the Hub,
    hf:OWNER/NAME@COMMIT:PATTERN. A row of Nectar gives every two answers of different ranks."""
    output: Path
    """Directory to make: a transformers model and its report."""
    columns: tuple[str, str, str] = ("prompt", "chosen", "rejected")
    """Fields with the prompt, the better and the worse answer."""
    encoder: str = "intfloat/multilingual-e5-large"
    """A transformers encoder: a directory, or a name on the Hub."""
    revision: str | None = None
    """Commit of the encoder on the Hub."""
    maximum_tokens: int = 512
    """Tokens of prompt and answer together."""
    held_out: float = 0.1
    """Share of the prompts that the report is measured on."""
    learning_rate: float = 1e-5
    """Peak learning rate; it rises to it in the first tenth of the steps, then falls linearly to 0."""
    epochs: int = 1
    """Passes over the pairs."""
    batch: int = 16
    """Pairs a step."""
    save_every: int = 500
    """Steps between two savings, after the last of which an interrupted training goes on."""
    seed: int = 0
    """Of the new head and the order."""


def train_reward(options: TrainReward) -> None:
    """Writes `options.output`, complete or not at all; interrupted, the same command goes on after the last saving.

    The same preferences, settings and threads give the same bytes, interrupted or not.

    Raises:
        InputError: unreadable files, no pair that can be used or too few, impossible options, or an encoder that
            cannot be loaded.
    """
    require(
        options,
        maximum_tokens=(options.maximum_tokens >= 8, "8 or more"),
        held_out=(0 < options.held_out < 1, "above 0 and below 1"),
        learning_rate=(options.learning_rate > 0, "above 0"),
        epochs=(options.epochs >= 1, "1 or more"),
        batch=(options.batch >= 1, "1 or more"),
        save_every=(options.save_every >= 1, "1 or more"),
    )
    refuse_existing(options.output)
    files, rejected = ", ".join(map(str, options.input)), Rejected()
    pairs = list(read_pairs(options.input, options.columns, rejected))
    if not pairs:
        raise InputError(f"{files}: no pair can be used; {rejected.why_none()}")
    held_out = [pair for pair in pairs if is_within(pair.prompt, options.held_out)]
    train = [pair for pair in pairs if not is_within(pair.prompt, options.held_out)]
    if not train or not held_out:
        raise InputError(f"{files}: {len(train)} pairs to train on and {len(held_out)} held out; give more")
    with resumable_directory(options.output, _work(pairs, options)) as directory:
        torch.manual_seed(options.seed)  # the new head is random
        scorer = Scorer.load(options.encoder, options.revision, has_new_head=True)
        if scorer.tokenizer.pad_token_id is None:
            raise InputError(f"{options.encoder}: its tokenizer has no padding token; take another encoder")
        logger.info(
            f"instruct train-reward: {len(train):,} pairs, {len(held_out):,} held out, {len(rejected):,} rejected"
        )
        reward = RewardModel(scorer, options.maximum_tokens)
        _train(reward, train, options, scratch_of(directory) / CHECKPOINT)
        report = reward_report(held_out, *(reward.score(texts) for texts in _sides(held_out)))
        scorer.save(directory)
        rejected.write(directory)
        settings = {**asdict(options), "input": list(map(str, options.input)), "output": str(options.output)}
        counts = {"pairs": len(pairs), "rejected": len(rejected)}
        values = {"maximum_tokens": options.maximum_tokens, "settings": settings, **counts, "held_out": asdict(report)}
        write_json(directory / SETTINGS, values)
        write_report(directory / "report.html", *reward_page(directory))
    low, high = report.interval
    logger.info(
        f"instruct train-reward: {options.output}: accuracy {report.accuracy:.3f} ({low:.3f} to {high:.3f}) on "
        f"{report.pairs:,} held-out pairs, the longer answer {report.length_accuracy:.3f}"
    )


def _work(pairs: list[Pair], options: TrainReward) -> dict[str, Any]:
    """What the result depends on."""
    told = hashlib.sha256()
    for pair in pairs:
        told.update(json_text(pair, ensure_ascii=True).encode("utf-8"))
    weights = {path.name: sha256_of(path) for path in sorted(Path(options.encoder).glob("*.safetensors"))}
    settings = {name: value for name, value in asdict(options).items() if name not in ("input", "output")}
    return {"stage": "instruct train-reward", "pairs": told.hexdigest(), "weights": weights, **settings}


def _sides(pairs: list[Pair]) -> tuple[list[Answered], list[Answered]]:
    """The chosen answers and the rejected ones."""
    chosen = [Answered(pair.prompt, pair.chosen) for pair in pairs]
    return chosen, [Answered(pair.prompt, pair.rejected) for pair in pairs]


def _train(reward: RewardModel, pairs: list[Pair], options: TrainReward, checkpoint: Path) -> None:
    sides = [reward.encode(texts) for texts in _sides(pairs)]

    def loss_of(rows: list[int]) -> torch.Tensor:
        chosen, rejected = reward.scorer.logits([ids[row] for ids in sides for row in rows]).float().chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()

    EncoderTraining(
        stage="instruct train-reward",
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=options.learning_rate,
        seed=options.seed,
        warm_up=0.1,
        save_every=options.save_every,
    ).run(reward.scorer.model, len(pairs), loss_of, checkpoint)
