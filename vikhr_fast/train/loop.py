"""The training loop, for pre-training and instruction tuning alike."""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import Batch, StepLoader
from vikhr_fast.data.prefetch import prefetched
from vikhr_fast.distributed.ranks import Ranks, process_group
from vikhr_fast.distributed.sharding import reshard, save_model, set_collectives
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import Score, score_shards
from vikhr_fast.io.console import logger
from vikhr_fast.io.run_directory import locked
from vikhr_fast.tokenizer.files import companions
from vikhr_fast.train.assembly import DTYPES, assemble
from vikhr_fast.train.checkpoint import Checkpoints, TrainState, complete_checkpoints, step_of
from vikhr_fast.train.evaluation import Evaluations
from vikhr_fast.train.flops import flops_share, peak_bytes, step_work
from vikhr_fast.train.incidents import WINDOW, reason_to_skip, record_incident
from vikhr_fast.train.inputs import Inputs, describe, open_inputs, record_inputs
from vikhr_fast.train.metrics import INCIDENTS, MetricsWriter, StepMetrics, forget_steps_after
from vikhr_fast.train.optimizer import learning_rate
from vikhr_fast.train.profile import phase, profiling
from vikhr_fast.train.signals import Interruption

MODEL, CHECKPOINTS = "model", "checkpoints"


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
        if final.exists():
            done = max(map(step_of, complete_checkpoints(config.output / CHECKPOINTS)), default=inputs.num_steps)
            if done < inputs.num_steps:
                raise InputError(f"{final}: finished at step {done}; remove it to go on to step {inputs.num_steps}")
            return final
        ranks.watch.enter("loading the model")
        return Training(config, inputs, ranks, interruption).run()


class Training:
    """One run: everything it needs, opened and checked, then stepped through."""

    def __init__(self, config: TrainConfig, inputs: Inputs, ranks: Ranks, interruption: Interruption) -> None:
        self.config, self.inputs, self.ranks, self.interruption = config, inputs, ranks, interruption
        self.model, self.objective, self.optimizer = assemble(config, inputs, ranks)
        self.checkpoints = Checkpoints(config.output / CHECKPOINTS, config.schedule, ranks)
        self.state, self.num_steps = TrainState(), inputs.num_steps
        self._evaluations = Evaluations(config, inputs.questions, self.model, ranks, interruption, self.num_steps)

    def run(self) -> Path:
        """Trains from the last checkpoint, saves, and returns the model's directory."""
        config, schedule = self.config, self.config.schedule
        self.state = self.checkpoints.load_last(self.optimizer)
        final = config.output / MODEL
        self.ranks.on_main(lambda: forget_steps_after(config.output, self.state.step))
        with (
            MetricsWriter(config, self.state.step, self.num_steps, self.ranks) as metrics,
            profiling(config.output, config.profile, self.ranks, self.num_steps - self.state.step) as profiled,
            closing(self._batches()) as steps,
            closing(self.checkpoints) as checkpoints,
        ):
            if self.ranks.is_main:
                logger.info(describe(config, self.inputs, self.ranks.count, self.state.step))
            if self.state.step == 0 and schedule.validate_every:
                self._validate(metrics)
            if not self._evaluations.owed(self.state.step, self.state.tokens, metrics):
                self._stop()
            while True:
                waited = time.monotonic()
                following = self._next(steps)
                if following is None:
                    break
                if (measured := self._step(*following, time.monotonic() - waited)) is not None:
                    metrics.step(measured)
                    profiled()
                done, last = self.state.step, self.state.step == self.num_steps
                if measured is not None and (last or _is_due(done, schedule.validate_every)):
                    self._validate(metrics)
                is_through = measured is not None and self._evaluations.after(done, self.state.tokens, metrics)
                exit_code, has_failed = self.ranks.all_reduce_max(
                    self.interruption.exit_code, self.checkpoints.has_failed
                )
                if has_failed:
                    checkpoints.finish()  # raises
                if last or exit_code or _is_due(done, schedule.checkpoint_every):
                    self.ranks.watch.enter(f"the checkpoint of step {done}")
                    checkpoints.save(self.optimizer, self.state)
                if last or exit_code:
                    checkpoints.finish()
                if exit_code and not (last and is_through):
                    self._stop()
        self.ranks.watch.enter("writing the model")
        stored = DTYPES[config.runtime.dtype]
        save_model(self.model, final, self.ranks, stored, also=companions(config.model))
        return final

    def _stop(self) -> NoReturn:
        logger.info(f"stopped by a signal after step {self.state.step}; the same command goes on from there")
        raise SystemExit(self.ranks.all_reduce_max(self.interruption.exit_code)[0])

    def _next(self, steps: Iterator[tuple[int, list[Batch]]]) -> tuple[int, list[Batch]] | None:
        """The next step and its batches; none after the last."""
        loading = f"loading the data of step {self.state.step + 1}"
        self.ranks.watch.enter(loading)
        try:
            with phase("loader"):
                return next(steps, None)
        except (InputError, OSError) as error:
            raise InputError(f"rank {self.ranks.rank}, {loading}: {error}") from error

    def _batches(self) -> Generator[tuple[int, list[Batch]], None, None]:
        """Each step's batches, made a step ahead; pinned for a GPU."""
        steps = self._loader().steps(self.state.step, self.num_steps)
        if self.ranks.device.type == "cuda":
            steps = ((step, [batch.pinned() for batch in batches]) for step, batches in steps)
        return prefetched(steps)

    def _step(self, step: int, batches: list[Batch], data_seconds: float = 0.0) -> StepMetrics | None:
        """One optimiser step: gradients of all micro-batches, clipping, AdamW. None: a signal came before the last."""
        started, is_saving = time.monotonic(), self.checkpoints.is_writing
        config, ranks = self.config, self.ranks
        self.ranks.watch.enter(f"forward and backward of step {step + 1}")
        rate = learning_rate(step, self.num_steps, config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        num_tokens = torch.full((), sum(batch.trained_tokens for batch in batches), device=ranks.device)
        ranks.all_reduce_sum(num_tokens)
        weights = self.objective.weights(self._on_device(self.state.losses))
        sums = torch.zeros(6, dtype=torch.float64, device=ranks.device)  # the loss, then objective.Losses
        compared = self.objective.with_reference(batches, config.runtime.reference_micro_batches)
        for number, (batch, reference) in enumerate(compared):
            if ranks.all_reduce_max(self.interruption.exit_code)[0]:  # whoever sent it won't wait for a step of minutes
                self.optimizer.skip()
                return None
            is_last = number == len(batches) - 1
            set_collectives(self.model, config.runtime, is_last)
            with phase("forward"):
                loss, losses = self.objective(batch, reference, num_tokens=num_tokens, weights=weights)
            with phase("backward"):
                loss.backward()
            sums += torch.stack((loss.detach(), *losses))
        with phase("norm"):
            grad_norm = self.optimizer.gradient_norm()
        sums = ranks.all_reduce_sum(torch.cat((sums, self._on_device(step_work(config, self.inputs.model, batches)))))
        reported = torch.cat((sums, num_tokens[None], grad_norm[None])).tolist()  # where the CPU waits for a GPU
        loss_value, *loss_sums, flops, reference_flops, counted, norm = reported
        tokens = int(counted)
        reason = reason_to_skip(loss_value, norm, self.state.recent_losses, config.incidents)
        self.ranks.watch.enter(f"the update of step {step + 1}")
        if reason is None:
            with phase("update"):
                self.optimizer.update(grad_norm, config.optimizer.max_grad_norm)
            recent = (*self.state.recent_losses, loss_value)[-WINDOW:]
            self.state = TrainState(step + 1, self.state.tokens + tokens, tuple(loss_sums), recent)
        else:
            self.optimizer.skip()
            self._note_incident(step, reason)
        seconds = data_seconds + time.monotonic() - started
        return StepMetrics(
            step=self.state.step,
            loss=_finite(loss_value),
            ce=_finite(loss_sums[0] / tokens),
            kl=_finite(loss_sums[1] / tokens),
            grad_norm=_finite(norm),
            learning_rate=rate,
            tokens=self.state.tokens,
            tokens_per_second=tokens / seconds,
            seconds=seconds,
            data_seconds=data_seconds,
            is_skipped=reason is not None,
            is_saving=is_saving,
            flops=flops,
            reference_flops=reference_flops,
            mfu=flops_share(flops, ranks, seconds),
            memory_bytes=peak_bytes(ranks.device),
        )

    def measure(self, batch: Batch) -> tuple[list[float], float]:
        """Mean CE and mean KL of a batch under the current weights, and the gradient norm of its loss; no update."""
        num_tokens = torch.tensor(batch.trained_tokens, device=self.ranks.device)
        weights = self.objective.weights(self._on_device(self.state.losses))
        for on_device, reference in self.objective.with_reference([batch]):
            loss, losses = self.objective(on_device, reference, num_tokens=num_tokens, weights=weights)
            loss.backward()
        norm = float(self.optimizer.gradient_norm())
        self.optimizer.skip()
        return [float(total) / batch.trained_tokens for total in (losses.ce, losses.kl)], norm

    def _note_incident(self, step: int, reason: str) -> None:
        """Writes a skipped step down and counts it; stops the run when there were too many in a row."""
        in_a_row = self.state.skipped_in_a_row + 1
        self.state = replace(self.state, step=step + 1, skipped_in_a_row=in_a_row, validation=None)
        size = self.config.batch.sequences_per_step
        sequences = range(step * size, min((step + 1) * size, self.inputs.corpus.num_sequences))

        def write() -> None:
            number = record_incident(self.config.output, self.inputs, sequences, step + 1, reason)
            logger.warning(f"step {step + 1} skipped: {reason}; look at it with --replay-incident {number}")

        self.ranks.on_main(write)
        if in_a_row >= self.config.incidents.most_in_a_row:
            raise InputError(
                f"step {step + 1}: skipped, as {in_a_row} in a row: {reason}; see {INCIDENTS} and --replay-incident, "
                "then go on with another incidents.most_in_a_row, or anew with a lower optimizer.learning_rate"
            )

    def _validate(self, metrics: MetricsWriter) -> None:
        if not self.inputs.validation:
            return
        config = self.config
        self.ranks.watch.enter(f"validation after step {self.state.step}")
        scores: dict[str, Score] = {
            name: score_shards(
                self.model, shards, sequence_length=config.data.sequence_length, micro_batch=config.batch.micro_batch,
                chunk_tokens=config.runtime.chunk_tokens or None, ranks=self.ranks,
            )
            for name, shards in self.inputs.validation.items()
        }  # fmt: skip
        reshard(self.model)
        mean = sum(score.bits_per_byte for score in scores.values()) / len(scores)
        self.state = replace(self.state, validation=mean)
        metrics.validation(self.state.step, self.state.tokens, scores)

    def _on_device(self, values: tuple[float, ...]) -> Tensor:
        """The values in float64; a GPU isn't waited for."""
        tensor = torch.tensor(values, dtype=torch.float64)
        on_gpu = self.ranks.device.type == "cuda"
        return (tensor.pin_memory() if on_gpu else tensor).to(self.ranks.device, non_blocking=True)

    def _loader(self) -> StepLoader:
        batch, kl = self.config.batch, self.config.kl
        return StepLoader(
            self.inputs.corpus, sequences_per_step=batch.sequences_per_step, micro_batch=batch.micro_batch,
            rank=self.ranks.rank, ranks=self.ranks.count, kl_fraction=kl.fraction if kl.needs_reference else 1.0,
        )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
