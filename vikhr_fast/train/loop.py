"""A run of training, pre-training and instruction tuning alike: from its last checkpoint to the trained model."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NoReturn

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import Batch
from vikhr_fast.distributed.ranks import Ranks, process_group
from vikhr_fast.distributed.sharding import reshard, save_model
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import Score, score_shards
from vikhr_fast.io.console import logger
from vikhr_fast.io.run_directory import locked
from vikhr_fast.tokenizer.files import companions
from vikhr_fast.train.assembly import DTYPES
from vikhr_fast.train.batches import step_batches
from vikhr_fast.train.checkpoint import CHECKPOINTS, Checkpoints, complete_checkpoints
from vikhr_fast.train.evaluation import Evaluations
from vikhr_fast.train.inputs import Inputs, describe, open_inputs, record_inputs
from vikhr_fast.train.metrics import VALIDATION, MetricsWriter, forget_steps_after, last_step
from vikhr_fast.train.optimizer import learning_rate
from vikhr_fast.train.profile import profiling
from vikhr_fast.train.signals import Interrupted, Interruption
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep

MODEL = "model"  # of a run directory


def train(config: TrainConfig) -> Path:
    """Runs training from the last complete checkpoint, if there is one, to the end.

    Returns:
        The trained model's Hugging Face directory, `config.output / "model"`.

    Raises:
        InputError: an input is missing, damaged or doesn't fit; or the loss is no longer finite.
        RankLostError: another rank died.
        SystemExit: a signal ended the run, after a checkpoint; the code is in `errors.ExitCode`.
    """
    with Interruption() as interruption, process_group(config.runtime) as ranks, ExitStack() as stack:
        ranks.watch.enter("reading the inputs")
        ranks.on_main(lambda: open_inputs(config))  # reads every byte once, on one rank
        inputs = open_inputs(config, verify=False)
        describe(config, inputs, ranks.count)  # its checks, before anything is written
        ranks.on_main(lambda: stack.enter_context(locked(config.output)))
        ranks.on_main(lambda: record_inputs(config, inputs))
        final = config.output / MODEL
        if final.is_symlink() and not final.exists():
            raise InputError(f"{final}: a symbolic link to nothing; remove it, or make what it leads to")
        if final.exists():
            done = last_step(config.output) or inputs.num_steps
            if done < inputs.num_steps and not complete_checkpoints(config.output / CHECKPOINTS):
                reason = f"finished at step {done}, and no checkpoint was kept to go on from"
                raise InputError(f"{final}: {reason}; begin with this model in another --output")
            if done < inputs.num_steps:
                raise InputError(f"{final}: finished at step {done}; remove it to go on to step {inputs.num_steps}")
            _require_not_past(done, inputs.num_steps)
            return final
        ranks.watch.enter("loading the model")
        return Training(config, inputs, ranks, interruption).run()


class Training:
    """One run: everything it needs, opened and checked, then stepped through."""

    def __init__(self, config: TrainConfig, inputs: Inputs, ranks: Ranks, interruption: Interruption) -> None:
        self.config, self.inputs, self.ranks, self.interruption = config, inputs, ranks, interruption
        self.step = TrainStep(config, inputs, ranks, interruption)
        self.checkpoints = Checkpoints(config.output / CHECKPOINTS, config.schedule, ranks)
        self.state, self.num_steps, model = TrainState(), inputs.num_steps, self.step.model
        self._evaluations = Evaluations(config, inputs.questions, model, ranks, interruption, self.num_steps)

    def run(self) -> Path:
        """Trains from the last checkpoint, saves, and returns the model's directory."""
        config, ranks = self.config, self.ranks
        self.state = self.checkpoints.load_last(self.step.optimizer)
        first_step = self.state.step
        _require_not_past(first_step, self.num_steps)
        ranks.on_main(lambda: forget_steps_after(config.output, first_step))
        with (
            MetricsWriter(config, first_step, self.num_steps, ranks) as metrics,
            profiling(config.output, config.profile, ranks, self.num_steps - first_step) as profiled,
            closing(step_batches(config, self.inputs, ranks, first_step)) as steps,
            closing(self.checkpoints),
        ):
            if ranks.is_main:
                logger.info(describe(config, self.inputs, ranks.count, first_step))
                if (warmup := config.optimizer.warmup_steps) > self.num_steps:
                    highest = learning_rate(self.num_steps - 1, self.num_steps, config.optimizer)
                    reason = f"longer than the run of {self.num_steps:,}: the learning rate only comes to {highest:.2e}"
                    logger.warning(f"optimizer.warmup_steps: {warmup:,}, {reason}")
            try:
                if not metrics.has(VALIDATION, first_step):  # before the first step, or stopped before it was done
                    self._validate_if_due(metrics)
                self._evaluations.run_if_missed(self.state, metrics)
                while self.state.step < self.num_steps:
                    self._take_step(steps, metrics)
                    profiled()
                    self._run_what_is_due(metrics)
            except Interrupted:
                self._save_and_stop()
        ranks.watch.enter("writing the model")
        final, stored = config.output / MODEL, DTYPES[config.runtime.dtype]
        save_model(self.step.model, final, ranks, stored, also=companions(config.model))
        self.checkpoints.drop_finished()
        return final

    def _take_step(self, steps: Iterator[list[Batch]], metrics: MetricsWriter) -> None:
        """Takes one step and records it, with the time that it took."""
        started = time.monotonic()
        batches = next(steps)
        data_seconds = time.monotonic() - started
        is_saving = self.checkpoints.is_writing
        result = self.step(self.state, batches)
        self.state = self.state.after(result)
        seconds = time.monotonic() - started
        metrics.step(self.state, result, seconds=seconds, data_seconds=data_seconds, is_saving=is_saving)

    def _run_what_is_due(self, metrics: MetricsWriter) -> None:
        """Validation, evaluation and a checkpoint, where they are due after a step; all of them after the last one.

        Raises:
            Interrupted: a signal came to any rank. One that comes after all that is due at the last step is too late.
        """
        is_last = self.state.step == self.num_steps
        self._validate_if_due(metrics)
        self._evaluations.run_if_due(self.state, metrics)
        exit_code, has_failed = self.ranks.all_reduce_max(self.interruption.exit_code, self.checkpoints.has_failed)
        if has_failed:
            self.checkpoints.finish()  # raises
        if exit_code and not is_last:
            raise Interrupted
        if is_last or self.state.is_due(self.config.schedule.checkpoint_every):
            self.checkpoints.save(self.step.optimizer, self.state)
        if is_last:
            self.checkpoints.finish()

    def _save_and_stop(self) -> NoReturn:
        self.checkpoints.save(self.step.optimizer, self.state)
        self.checkpoints.finish()
        logger.info(f"stopped by a signal after step {self.state.step}; the same command goes on from there")
        raise SystemExit(self.ranks.all_reduce_max(self.interruption.exit_code)[0])

    def _validate_if_due(self, metrics: MetricsWriter) -> None:
        """Scores the validation sets and records it, at the last step and every so many.

        Raises:
            Interrupted: a signal came before the end, and nothing is recorded.
        """
        state, config, model = self.state, self.config, self.step.model
        is_due = state.step == self.num_steps or state.is_due(config.schedule.validate_every)
        if not (is_due and self.inputs.validation):
            return
        try:
            scores: dict[str, Score] = {
                name: score_shards(
                    model, shards, window=config.data.window_of_validation, micro_batch=config.batch.micro_batch,
                    chunk_tokens=config.runtime.chunk_tokens or None, ranks=self.ranks,
                    advance=self.interruption.advancing(f"validation after step {state.step}: {name}", self.ranks),
                )
                for name, shards in self.inputs.validation.items()
            }  # fmt: skip
        finally:
            reshard(model)
        metrics.validation(state.step, state.tokens, scores)


def _require_not_past(step: int, num_steps: int) -> None:
    if step > num_steps:
        raise InputError(
            f"schedule.max_steps: {num_steps}, but the run has come to step {step}; "
            f"make it {step} or more, or take an earlier model by `vikhr-fast export --step`"
        )
