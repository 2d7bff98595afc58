"""One optimiser step: accumulate gradients, reduce the step's numbers over all ranks, apply the update or skip it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import Batch
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import set_collectives
from vikhr_fast.train.assembly import assemble
from vikhr_fast.train.flops import step_work
from vikhr_fast.train.incidents import reason_to_skip, record_incident
from vikhr_fast.train.inputs import Inputs
from vikhr_fast.train.optimizer import learning_rate
from vikhr_fast.train.profile import phase
from vikhr_fast.train.signals import Interrupted, Interruption
from vikhr_fast.train.state import Compared, StepResult, TrainState


class TrainStep:
    """The model, the objective and the optimiser of a run, and the step that all ranks take with them together.

    Args:
        config, inputs, ranks: the run.
        interruption: looked at before each micro-batch.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs, ranks: Ranks, interruption: Interruption) -> None:
        self._config, self._inputs, self._ranks, self._interruption = config, inputs, ranks, interruption
        self.model, self.objective, self.optimizer = assemble(config, inputs, ranks)

    def __call__(self, state: TrainState, batches: Sequence[Batch]) -> StepResult:
        """Trains on this rank's micro-batches of the step after `state`.

        Raises:
            Interrupted: a signal came before the last micro-batch; the weights are as they were.
            InputError: the step is skipped, and is one too many in a row.
        """
        config, ranks, optimizer = self._config, self._ranks, self.optimizer
        ranks.watch.enter(f"forward and backward of step {state.step + 1}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step, self._inputs.num_steps, config.optimizer)
        try:
            num_tokens, sums = self._accumulate(state, batches)
        except Interrupted:
            optimizer.skip()
            raise
        with phase("norm"):
            grad_norm = optimizer.gradient_norm()
        result = self._reduce(batches, num_tokens, sums, grad_norm)

        ranks.watch.enter(f"the update of step {state.step + 1}")
        reason = reason_to_skip(result.loss, result.grad_norm, state.recent_losses, config.incidents)
        if reason is None:
            with phase("update"):
                optimizer.update(grad_norm, config.optimizer.max_grad_norm)
            return result
        optimizer.skip()
        record_incident(config, self._inputs, ranks, state, reason)
        return replace(result, is_skipped=True)

    def measure(self, state: TrainState, batches: Sequence[Batch]) -> StepResult:
        """What a step with these micro-batches would come to; nothing is updated."""
        num_tokens, sums = self._accumulate(state, batches)
        result = self._reduce(batches, num_tokens, sums, self.optimizer.gradient_norm())
        self.optimizer.skip()
        return result

    def _accumulate(self, state: TrainState, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Adds up gradients; returns [] the trained tokens of all ranks, and [6] loss and `Losses` of this one's."""
        runtime, ranks = self._config.runtime, self._ranks
        num_tokens = torch.full((), sum(batch.trained_tokens for batch in batches), device=ranks.device)
        ranks.all_reduce_sum(num_tokens)
        weights = self.objective.weights(_on_device(state.losses, ranks.device))
        sums = torch.zeros(6, dtype=torch.float64, device=ranks.device)
        compared = self.objective.with_reference(batches, runtime.reference_micro_batches)
        for number, (batch, reference) in enumerate(compared, start=1):
            self._interruption.check(ranks)  # whoever sent a signal won't wait for a step of minutes
            set_collectives(self.model, runtime, is_last=number == len(batches))
            with phase("forward"):
                loss, losses = self.objective(batch, reference, num_tokens=num_tokens, weights=weights)
            with phase("backward"):
                loss.backward()
            sums += torch.stack((loss.detach(), *losses))
        return num_tokens, sums

    def _reduce(self, batches: Sequence[Batch], num_tokens: Tensor, sums: Tensor, grad_norm: Tensor) -> StepResult:
        """What the step came to over all ranks; here the CPU waits for a GPU."""
        reference = self._inputs.reference
        work = step_work(self._inputs.model, None if reference is None else reference.model, batches)
        counted = _on_device((*work, *_compared(batches)), self._ranks.device)
        sums = self._ranks.all_reduce_sum(torch.cat((sums, counted)))
        values = torch.cat((sums, num_tokens[None], grad_norm[None])).tolist()
        losses, (flops, reference_flops), compared = values[1:6], values[6:8], Compared(*map(int, values[8:-2]))
        loss, tokens, norm = values[0], values[-2], values[-1]
        ce, kl = (total / max(tokens, 1) for total in losses[:2])
        return StepResult(
            loss=loss, ce=ce, kl=kl, losses=tuple(losses), tokens=int(tokens),
            grad_norm=norm, learning_rate=self.optimizer.param_groups[0]["lr"],
            flops=flops, reference_flops=reference_flops,
            compared=compared if reference and reference.reader else None,
        )  # fmt: skip


def _compared(batches: Sequence[Batch]) -> Compared:
    """What a reference with another vocabulary read of some micro-batches."""
    readings = [batch.reading for batch in batches if batch.reading is not None]
    return Compared(
        compared=sum(batch.compared_tokens for batch in batches if batch.reading is not None),
        read=sum(reading.num_tokens for reading in readings),
        cut=sum(reading.num_cut for reading in readings),
        apart=sum(reading.num_apart for reading in readings),
        unspelt=sum(reading.num_unspelt for reading in readings),
    )


def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values in float64; a GPU isn't waited for."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
