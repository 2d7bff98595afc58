"""`instruct train-reward`: a reward model learnt from preferences by the Bradley-Terry model.

P(chosen is better) = sigmoid(score(chosen) - score(rejected)); its log-likelihood is maximised.
"""

import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tyro.conf import Positional

from vikhr_fast.console import console, logger
from vikhr_fast.corpus.classifier import device_of, load_encoder, padded, save_encoder, score
from vikhr_fast.errors import InputError
from vikhr_fast.files import refuse_existing, sha256_of, write_text
from vikhr_fast.instruct.preferences import Columns, Pair, is_held_out, read_pairs
from vikhr_fast.instruct.reward import SETTINGS, Answered, encode
from vikhr_fast.instruct.reward_report import RewardReport, reward_page, reward_report
from vikhr_fast.report import write_report
from vikhr_fast.resumable import resumable_directory, scratch_of

_BATCH_TOKENS = 16_384
_WEIGHT_DECAY = 0.01
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class TrainReward:
    """Trains a reward model on preferences: an encoder with one output, by transformers' Trainer.

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
    """Peak learning rate; it falls linearly to 0."""
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
        InputError: unreadable or too few pairs, impossible options, or an encoder that cannot be loaded.
    """
    _refuse_impossible(options)
    refuse_existing(options.output)
    pairs = list(read_pairs(options.input, Columns(*options.columns)))
    held_out = [pair for pair in pairs if is_held_out(pair, options.held_out)]
    train = [pair for pair in pairs if not is_held_out(pair, options.held_out)]
    if not train or not held_out:
        files = ", ".join(map(str, options.input))
        raise InputError(f"{files}: {len(train)} pairs to train on and {len(held_out)} held out; give more")
    with resumable_directory(options.output, _work(pairs, options)) as directory:
        torch.manual_seed(options.seed)  # the new head is random
        tokenizer, model = load_encoder(options.encoder, options.revision, new_head=True)
        if tokenizer.pad_token_id is None:
            raise InputError(f"{options.encoder}: its tokenizer has no padding token; take another encoder")
        logger.info(f"instruct train-reward: {len(train):,} pairs, {len(held_out):,} held out")
        _fit(model, tokenizer, train, options, scratch_of(directory))
        report = _measured(model, tokenizer, held_out, options.maximum_tokens)
        save_encoder(directory, model, tokenizer)
        settings = {**asdict(options), "input": list(map(str, options.input)), "output": str(options.output)}
        values = {"maximum_tokens": options.maximum_tokens, "settings": settings, "held_out": asdict(report)}
        write_text(directory / SETTINGS, json.dumps(values, ensure_ascii=False, indent=2) + "\n")
        write_report(directory / "report.html", *reward_page(directory))
    low, high = report.interval
    logger.info(
        f"instruct train-reward: {options.output}: accuracy {report.accuracy:.3f} ({low:.3f} to {high:.3f}) on "
        f"{report.pairs:,} held-out pairs, the longer answer {report.length_accuracy:.3f}"
    )


def _refuse_impossible(options: TrainReward) -> None:
    for name, possible, wanted in (
        ("maximum-tokens", options.maximum_tokens >= 8, "8 or more"),
        ("held-out", 0 < options.held_out < 1, "above 0 and below 1"),
        ("learning-rate", options.learning_rate > 0, "above 0"),
        ("epochs", options.epochs >= 1, "1 or more"),
        ("batch", options.batch >= 1, "1 or more"),
        ("save-every", options.save_every >= 1, "1 or more"),
    ):
        if not possible:
            raise InputError(f"--{name} {getattr(options, name.replace('-', '_'))}: must be {wanted}")


def _work(pairs: list[Pair], options: TrainReward) -> dict[str, Any]:
    """What the result depends on."""
    told = hashlib.sha256()
    for pair in pairs:
        told.update(json.dumps(pair).encode("utf-8"))
    weights = {path.name: sha256_of(path) for path in sorted(Path(options.encoder).glob("*.safetensors"))}
    settings = {name: value for name, value in asdict(options).items() if name not in ("input", "output")}
    return {"stage": "instruct train-reward", "pairs": told.hexdigest(), "weights": weights, **settings}


def _fit(model: Any, tokenizer: Any, pairs: list[Pair], options: TrainReward, scratch: Path) -> None:
    """Trains the model in place; its savings are in `scratch`."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class PairTrainer(Trainer):
        def compute_loss(
            self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: object
        ) -> Any:
            outputs = model(**inputs)
            chosen, rejected = outputs.logits[:, 0].float().chunk(2)
            loss = -F.logsigmoid(chosen - rejected).mean()
            return (loss, outputs) if return_outputs else loss

    def batch(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        """The chosen answers, then the rejected ones."""
        tokens, mask = padded([ids for side in zip(*rows, strict=True) for ids in side], tokenizer.pad_token_id)
        return {"input_ids": tokens, "attention_mask": mask}

    chosen, rejected = (
        encode(tokenizer, [Answered(pair.prompt, getattr(pair, side)) for pair in pairs], options.maximum_tokens)
        for side in ("chosen", "rejected")
    )
    device, _ = device_of("auto")
    arguments = TrainingArguments(
        output_dir=str(scratch),
        learning_rate=options.learning_rate,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        weight_decay=_WEIGHT_DECAY,
        warmup_steps=0.1,  # of all steps
        seed=options.seed,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=1,  # the one before goes when the new one is whole
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not console.is_terminal,
    )
    rows = list(zip(chosen, rejected, strict=True))
    trainer = PairTrainer(model=model, args=arguments, train_dataset=rows, data_collator=batch)
    trainer.remove_callback(PrinterCallback)  # standard output is for results
    saved = _last_whole(scratch)
    if saved is not None:
        logger.info(f"instruct train-reward: going on after {saved.name}")
    try:
        trainer.train(resume_from_checkpoint=saved and str(saved))
    except (RuntimeError, SafetensorError):
        if shutil.disk_usage(scratch).free < _SPARE_BYTES:  # what writes the savings hides this reason
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch)) from None
        raise


def _last_whole(scratch: Path) -> Path | None:
    """The Trainer's newest saving that it finished; what it didn't finish is removed."""
    whole: dict[int, Path] = {}
    for path in scratch.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_bytes())  # written last
            whole[int(state["global_step"])] = path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


def _measured(model: Any, tokenizer: Any, held_out: list[Pair], maximum_tokens: int) -> RewardReport:
    device, dtype = device_of("auto")
    model.to(device).eval()
    texts = [Answered(p.prompt, p.chosen) for p in held_out] + [Answered(p.prompt, p.rejected) for p in held_out]
    scores = score(model, encode(tokenizer, texts, maximum_tokens), tokenizer, device, dtype, _BATCH_TOKENS)
    return reward_report(held_out, scores[: len(held_out)], scores[len(held_out) :])
