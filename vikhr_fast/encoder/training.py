"""Training of an encoder with one output: killed, it goes on after its last checkpoint, to the same bytes."""

import copy
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_file
from vikhr_fast.io.progress import progress_bar

CHECKPOINT = "training.pt"
_WEIGHT_DECAY = 0.01
_CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class EncoderTraining:
    """How an encoder is trained: AdamW, whose learning rate falls linearly to 0."""

    stage: str
    """For log lines."""
    epochs: int
    batch: int
    """Rows a step."""
    learning_rate: float
    """Peak."""
    seed: int
    """Order and dropout are a function of it and the epoch."""
    warm_up: float = 0.0
    """Share of the steps in which the learning rate rises."""
    patience: int | None = None
    """Epochs without a better validation loss before it stops."""
    save_every: int | None = None
    """Steps between two checkpoints; None is an epoch, which validation needs."""

    def run(
        self,
        model: Any,
        rows: int,
        loss_of: Callable[[list[int]], torch.Tensor],
        checkpoint: Path,
        validate: Callable[[], float] | None = None,
    ) -> int:
        """Trains a model in place.

        Args:
            model: on its device.
            rows: how many there are to train on.
            loss_of: the loss of some of them, by their numbers.
            checkpoint: the file that holds all this while training lasts.
            validate: the validation loss; with it, the weights of the best epoch are taken in the end.

        Returns:
            The epoch whose weights the model has.
        """
        device = next(model.parameters()).device
        generator = torch.cuda if device.type == "cuda" else torch
        epoch_steps = -(-rows // self.batch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=_WEIGHT_DECAY)
        schedule = self._schedule(optimizer, self.epochs * epoch_steps)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        step, best_epoch, best_loss, best = 0, 0, float("inf"), copy.deepcopy(model.state_dict()) if validate else {}

        def save() -> None:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"step": step, "best_epoch": best_epoch, "best_loss": best_loss, "best": best}
            content = io.BytesIO()  # torch.save to a file hides that the disk is full
            torch.save({**state, "random": generator.get_rng_state()}, content)
            with atomic_file(checkpoint) as file:
                file.write(content.getbuffer())

        if checkpoint.exists():
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            step, best_epoch, best_loss, best = (state[n] for n in ("step", "best_epoch", "best_loss", "best"))
            generator.set_rng_state(state["random"].cpu())
            logger.info(f"{self.stage}: going on after step {step}")
        with progress_bar(self.stage, self.epochs * epoch_steps) as advance:
            advance(step)
            for epoch in range(1 + step // epoch_steps, self.epochs + 1):
                if self.patience is not None and epoch - 1 - best_epoch >= self.patience:
                    break
                chance = random.Random(f"{self.seed} {epoch}")
                seed = chance.getrandbits(62)
                order = chance.sample(range(rows), rows)
                if step % epoch_steps == 0:  # within an epoch, dropout goes on as the checkpoint says
                    torch.manual_seed(seed)
                model.train()
                for start in range(step % epoch_steps * self.batch, rows, self.batch):
                    loss = loss_of(order[start : start + self.batch])
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
                    optimizer.step()
                    schedule.step()
                    step += 1
                    advance(1)
                    if self.save_every and step % self.save_every == 0:
                        save()
                if validate and (validation_loss := validate()) < best_loss:
                    best_epoch, best_loss, best = epoch, validation_loss, copy.deepcopy(model.state_dict())
                if not self.save_every:
                    save()
        if validate:
            model.load_state_dict(best)
        return best_epoch if validate else self.epochs

    def _schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        warm_up = round(self.warm_up * steps)
        linear = torch.optim.lr_scheduler.LinearLR
        if not warm_up:
            return linear(optimizer, 1.0, 0.0, total_iters=steps)
        rising, falling = (
            linear(optimizer, 1 / (warm_up + 1), 1.0, warm_up),
            linear(optimizer, 1.0, 0.0, steps - warm_up),
        )
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [warm_up])
