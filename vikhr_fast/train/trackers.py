"""TensorBoard and Weights & Biases: where a run's numbers go beside its own JSON lines."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from vikhr_fast.config import TrainConfig, config_values
from vikhr_fast.errors import InputError

Tracker: TypeAlias = "_TensorBoard | _WeightsAndBiases"


def open_trackers(config: TrainConfig, first_step: int) -> list[Tracker]:
    """Those that the configuration asks for; a resumed run goes on in theirs.

    Raises:
        InputError: one isn't installed, or refuses to begin.
    """
    tensorboard = [_TensorBoard(config.output, first_step)] if config.tensorboard else []
    return [*tensorboard, *([_WeightsAndBiases(config)] if config.wandb else [])]


class _TensorBoard:
    def __init__(self, directory: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("tensorboard: not installed; pip install 'vikhr-fast[tensorboard]'") from None
        purged = first_step + 1 if first_step else 0
        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=purged)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError:
            raise InputError("wandb: not installed; pip install 'vikhr-fast[wandb]'") from None
        # of the run directory: the same run when it is resumed
        identity = hashlib.sha256(str(config.output.resolve()).encode()).hexdigest()[:16]
        try:
            self._run: Any = wandb.init(
                id=identity, name=config.output.name, dir=config.output, config=config_values(config), resume="allow",
                settings=wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
        except (wandb.errors.Error, OSError) as error:
            raise InputError(
                f"wandb: {str(error).rstrip('.')}; WANDB_MODE=offline keeps its files in {config.output / 'wandb'}"
            ) from None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
