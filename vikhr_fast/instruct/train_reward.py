"""`instruct train-reward`: a reward model learnt from preferences by the Bradley-Terry model.

P(chosen is better) = sigmoid(score(chosen) - score(rejected)); its log-likelihood is maximised.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from tyro.conf import Positional

from vikhr_fast.console import console, logger
from vikhr_fast.corpus.classifier import device_of, load_encoder, padded, score
from vikhr_fast.errors import InputError
from vikhr_fast.files import atomic_directory, refuse_existing, write_text
from vikhr_fast.instruct.preferences import Columns, Pair, is_held_out, read_pairs
from vikhr_fast.instruct.reward import SETTINGS, Answered, encode
from vikhr_fast.instruct.reward_report import reward_report, write_reward_report

_BATCH_TOKENS = 16_384
_WEIGHT_DECAY = 0.01


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
    seed: int = 0
    """Of the new head and the order."""


def train_reward(options: TrainReward) -> None:
    """Writes `options.output`, complete or not at all.

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
    torch.manual_seed(options.seed)  # the new head is random
    tokenizer, model = load_encoder(options.encoder, options.revision, new_head=True)
    if tokenizer.pad_token_id is None:
        raise InputError(f"{options.encoder}: its tokenizer has no padding token; take another encoder")
    logger.info(f"instruct train-reward: {len(train):,} pairs, {len(held_out):,} held out")
    _fit(model, tokenizer, train, options)
    device, dtype = device_of("auto")
    model.to(device).eval()
    texts = [Answered(p.prompt, p.chosen) for p in held_out] + [Answered(p.prompt, p.rejected) for p in held_out]
    ids = encode(tokenizer, texts, options.maximum_tokens)
    scores = score(model, ids, tokenizer, device, dtype, _BATCH_TOKENS)
    report = reward_report(held_out, scores[: len(held_out)], scores[len(held_out) :])
    with atomic_directory(options.output) as directory:
        model.cpu().save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        settings = {**asdict(options), "input": list(map(str, options.input)), "output": str(options.output)}
        values = {"maximum_tokens": options.maximum_tokens, "settings": settings, "held_out": asdict(report)}
        write_text(directory / SETTINGS, json.dumps(values, ensure_ascii=False, indent=2) + "\n")
        write_reward_report(directory / "report.html", report)
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
    ):
        if not possible:
            raise InputError(f"--{name} {getattr(options, name.replace('-', '_'))}: must be {wanted}")


def _fit(model: Any, tokenizer: Any, pairs: list[Pair], options: TrainReward) -> None:
    """Trains the model in place."""
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
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
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
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=not console.is_terminal,
        )
        rows = list(zip(chosen, rejected, strict=True))
        trainer = PairTrainer(model=model, args=arguments, train_dataset=rows, data_collator=batch)
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
