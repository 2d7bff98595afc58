"""Training of the quality filter's encoder: stops early; killed, it goes on after its last whole epoch."""

import copy
import io
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from vikhr_fast.console import logger
from vikhr_fast.corpus.classifier import Scores, padded, score
from vikhr_fast.corpus.settings import TrainFilterStage
from vikhr_fast.corpus.stage import counted
from vikhr_fast.files import atomic_file

_BATCH_TOKENS = 16_384
_WEIGHT_DECAY = 0.01

Labels = npt.NDArray[np.bool_]


class Examples(NamedTuple):
    """Documents as the encoder sees them."""

    ids: list[list[int]]
    labels: Labels
    """[documents] whether each is good."""


class Training:
    """Trains a model with one logit.

    Args:
        model: on its device.
        tokenizer: of the model.
        dtype: what validation computes in.
        settings: epochs, patience, batch, learning rate and seed.
        checkpoint: the file that holds all this while training lasts.
    """

    def __init__(
        self, model: Any, tokenizer: Any, dtype: torch.dtype, settings: TrainFilterStage, checkpoint: Path
    ) -> None:
        self._model, self._pad, self._tokenizer = model, tokenizer.pad_token_id or 0, tokenizer
        self._device, self._dtype = next(model.parameters()).device, dtype
        self._settings, self._checkpoint = settings, checkpoint

    def run(self, train: Examples, validation: Examples) -> int:
        """Trains until the validation loss has not fallen for `patience` epochs, and takes the best; returns which."""
        settings, model = self._settings, self._model
        steps = -(-len(train.ids) // settings.batch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=settings.epochs * steps)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        epoch, best_epoch, best_loss, best = 0, 0, float("inf"), copy.deepcopy(model.state_dict())
        if self._checkpoint.exists():
            state = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            epoch, best_epoch, best_loss, best = (state[n] for n in ("epoch", "best_epoch", "best_loss", "best"))
            logger.info(f"train-filter: goes on after epoch {epoch}")
        with counted("train-filter", settings.epochs * steps) as advance:
            advance(epoch * steps)
            while epoch < settings.epochs and epoch - best_epoch < settings.patience:
                epoch += 1
                # Dropout and order are a function of the seed and the epoch alone.
                chance = random.Random(f"{settings.seed} {epoch}")
                torch.manual_seed(chance.getrandbits(62))
                model.train()
                order = chance.sample(range(len(train.ids)), len(train.ids))
                for start in range(0, len(order), settings.batch):
                    self._step(train, order[start : start + settings.batch], optimizer)
                    schedule.step()
                    advance(1)
                logits = torch.from_numpy(self.logits_of(validation.ids))
                wanted = torch.from_numpy(validation.labels.astype(float))
                loss = float(F.binary_cross_entropy_with_logits(logits, wanted))
                logger.debug(f"train-filter: epoch {epoch}: validation loss {loss:.4f}")
                if loss < best_loss:
                    best_epoch, best_loss, best = epoch, loss, copy.deepcopy(model.state_dict())
                state = {name: part.state_dict() for name, part in parts.items()}
                self._save({"epoch": epoch, "best_epoch": best_epoch, "best_loss": best_loss, "best": best, **state})
        model.load_state_dict(best)
        return best_epoch

    def logits_of(self, ids: list[list[int]]) -> Scores:
        """The model's logit of each document."""
        self._model.eval()
        return score(self._model, ids, self._tokenizer, self._device, self._dtype, _BATCH_TOKENS)

    def _step(self, train: Examples, rows: list[int], optimizer: torch.optim.Optimizer) -> None:
        tokens, mask = padded([train.ids[row] for row in rows], self._pad)
        targets = torch.tensor(train.labels[rows], dtype=torch.float32, device=self._device)
        output = self._model(input_ids=tokens.to(self._device), attention_mask=mask.to(self._device)).logits[:, 0]
        loss = F.binary_cross_entropy_with_logits(output.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        optimizer.step()

    def _save(self, state: dict[str, Any]) -> None:
        content = io.BytesIO()  # torch.save to a file hides that the disk is full
        torch.save(state, content)
        with atomic_file(self._checkpoint) as file:
            file.write(content.getbuffer())
