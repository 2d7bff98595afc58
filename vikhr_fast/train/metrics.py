"""What a run says of itself: one console line a step, JSON lines, TensorBoard events, Weights & Biases."""

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vikhr_fast.config import TrainConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import Score
from vikhr_fast.io.append_only import append_line, read_lines
from vikhr_fast.io.console import console, logger
from vikhr_fast.io.files import sync_file, write_json_lines
from vikhr_fast.train.flops import flops_share, peak_bytes
from vikhr_fast.train.state import Compared, StepResult, TrainState
from vikhr_fast.train.trackers import Tracker, open_trackers

METRICS, VALIDATION, EVALUATIONS, INCIDENTS = (
    "metrics.jsonl", "validation.jsonl", "evaluations.jsonl", "incidents.jsonl",
)  # fmt: skip
_TRACKED = (
    "loss", "ce", "kl", "grad_norm", "learning_rate", "tokens_per_second", "data_seconds", "mfu", "memory_bytes",
)  # fmt: skip


_ADVICE = "move the file away to go on without it"


class MetricsWriter:
    """Writes metrics from the main rank; on the others it does nothing.

    Args:
        config: the run.
        first_step: steps already done.
        num_steps: steps of the whole run.
        ranks: this process's place.

    Raises:
        InputError: a tracker isn't installed, or refuses to begin; on every rank.
    """

    def __init__(self, config: TrainConfig, first_step: int, num_steps: int, ranks: Ranks) -> None:
        self._ranks, self._directory = ranks, config.output
        self._trackers: list[Tracker] = []
        ranks.on_main(lambda: self._trackers.extend(open_trackers(config, first_step)))
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
            TimeRemainingColumn(), console=console, transient=True,
            disable=not ranks.is_main or not logger.isEnabledFor(logging.INFO),
        )  # fmt: skip
        self._task = self._progress.add_task("", total=num_steps, completed=first_step)
        self._first_step, self._num_steps, self._started = first_step, num_steps, time.monotonic()

    def __enter__(self) -> "MetricsWriter":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for tracker in self._trackers:
            tracker.close()

    def step(
        self, state: TrainState, result: StepResult, *, seconds: float, data_seconds: float, is_saving: bool
    ) -> None:
        """Records the step that led to `state`; losses are means over its trained tokens, null where not finite."""
        mfu = flops_share(result.flops, self._ranks, seconds)
        losses = {"loss": result.loss, "ce": result.ce, "kl": result.kl, "grad_norm": result.grad_norm}
        values: dict[str, Any] = {
            "step": state.step,
            **{name: value if math.isfinite(value) else None for name, value in losses.items()},
            "learning_rate": result.learning_rate,
            "tokens": state.tokens,  # trained on since the beginning of the run
            "tokens_per_second": result.tokens / seconds,
            "seconds": seconds,
            "data_seconds": data_seconds,  # of them, waiting for batches
            "flops": result.flops,  # by 6 N + attention: see `step_work`
            "reference_flops": result.reference_flops,  # of the reference's forward, not in `flops`
            "mfu": mfu,  # `flops` a second over the GPUs' bf16 peak; null where that isn't known
            **({} if result.compared is None else _of_comparison(result.compared)),
            "is_skipped": result.is_skipped,  # see incidents.jsonl
            "is_saving": is_saving,  # a checkpoint was being written meanwhile
            "memory_bytes": peak_bytes(
                self._ranks.device
            ),  # the most that this rank had on its GPU, or resident on a CPU
        }
        per_step = (time.monotonic() - self._started) / (state.step - self._first_step)
        minutes, seconds_left = divmod(round(per_step * (self._num_steps - state.step)), 60)
        described = (
            f"{name.removesuffix('_norm')} {format(value, digits) if math.isfinite(value) else 'not finite'}"
            for (name, value), digits in zip(losses.items(), (".4f", ".4f", ".4f", ".2f"), strict=True)
        )
        said = (
            f"step {state.step:>{len(str(self._num_steps))}}/{self._num_steps}  {'  '.join(described)}  "
            f"{'' if result.compared is None else _said_of(result.compared, result.tokens)}"
            f"lr {result.learning_rate:.2e}  {result.tokens / seconds:,.0f} tok/s  "
            f"{'' if mfu is None else f'MFU {mfu:.1%}  '}"
            f"ETA {minutes // 60}:{minutes % 60:02}:{seconds_left:02}"
        )
        tracked = {f"train/{name}": values[name] for name in _TRACKED if values[name] is not None}
        self._record(METRICS, values, said, tracked)
        self._progress.update(self._task, completed=state.step)

    def validation(self, step: int, tokens: int, scores: dict[str, Score]) -> None:
        """Records the scores of all validation sets at one step."""
        sets = {name: asdict(score) for name, score in scores.items()}
        described = (f"{name} {s.bits_per_byte:.4f} bits/byte (loss {s.loss:.4f})" for name, s in scores.items())
        tracked = {f"validation/{name}_bits_per_byte": score.bits_per_byte for name, score in scores.items()}
        said = f"validation at step {step}: {', '.join(described)}"
        self._record(VALIDATION, {"step": step, "tokens": tokens, "sets": sets}, said, tracked)
        if self._ranks.is_main:
            sync_file(self._directory / VALIDATION)  # checkpoints stay or go by it

    def evaluation(self, step: int, tokens: int, results: dict[str, dict[str, Any]]) -> None:
        """Records the results of all benchmarks at one step."""
        described = (f"{name} {own['accuracy']:.1%} of {own['questions']:,}" for name, own in results.items())
        tracked = {f"evaluation/{name}_accuracy": own["accuracy"] for name, own in results.items()}
        said = f"evaluation at step {step}: {', '.join(described)}"
        self._record(EVALUATIONS, {"step": step, "tokens": tokens, "tasks": results}, said, tracked)

    def has(self, name: str, step: int) -> bool:
        """Whether one of the files has a line of this step already; the same on all ranks."""
        lines = _read_steps(self._directory / name) if self._ranks.is_main else []
        return bool(self._ranks.all_reduce_max(any(line["step"] == step for line in lines))[0])

    def _record(self, name: str, values: dict[str, Any], said: str, tracked: dict[str, float]) -> None:
        if self._ranks.is_main:
            append_line(self._directory / name, values)
            logger.info(said)
            for tracker in self._trackers:
                tracker.log(values["step"], tracked)


def _of_comparison(compared: Compared) -> dict[str, int]:
    return {
        "compared_tokens": compared.compared,  # positions that took the KL, out of the trained tokens
        "reference_tokens": compared.read,  # that the reference read, of its own
        "reference_tokens_cut": compared.cut,  # beyond the positions that it was made for: not read
        "apart_tokens": compared.apart,  # compared, but the tokens that follow are in different buckets
        "unspelt_texts": compared.unspelt,  # that the reference couldn't spell to their end: the rest wasn't read
    }


def _said_of(compared: Compared, tokens: int) -> str:
    cut = f", {compared.cut:,} of the reference's tokens cut off" if compared.cut else ""
    unspelt = f", {compared.unspelt:,} texts that it can't spell cut short" if compared.unspelt else ""
    return f"KL on {compared.compared / max(tokens, 1):.1%}{cut}{unspelt}  "


def number(figure: float | None) -> float:
    """A figure of such a line; NaN where null stands for what was not finite."""
    return math.nan if figure is None else figure


def last_step(directory: Path) -> int | None:
    """The last step that a run has recorded, if any."""
    return max((line["step"] for line in _read_steps(directory / METRICS)), default=None)


def mean_bits_per_byte(directory: Path) -> dict[int, float]:
    """Over the validation sets of a run, by the step at which they were scored; only where that is a number.

    Raises:
        InputError: a line has no scores.
    """
    found, path = {}, directory / VALIDATION
    for line in _read_steps(path):
        try:
            scores = [number(own["bits_per_byte"]) for own in line["sets"].values()]
            found[line["step"]] = sum(scores) / len(scores)
        except (LookupError, TypeError, AttributeError, ZeroDivisionError):
            raise InputError(f"{path}: damaged: no scores of step {line['step']}; {_ADVICE}") from None
    return {step: mean for step, mean in found.items() if not math.isnan(mean)}


def forget_steps_after(directory: Path, step: int) -> None:
    """Drops the JSON lines past a step, which the run does again; before the first step, all.

    Raises:
        InputError: a line has no step.
    """
    for path in (directory / name for name in (METRICS, VALIDATION, EVALUATIONS, INCIDENTS)):
        write_json_lines(path, [line for line in _read_steps(path) if step > 0 and line["step"] <= step])


def _read_steps(path: Path) -> list[dict[str, Any]]:
    lines = read_lines(path)
    if wrong := next((number for number, line in enumerate(lines, start=1) if type(line.get("step")) is not int), 0):
        raise InputError(f"{path}: damaged: line {wrong} has no step; {_ADVICE}")
    return lines
