"""The form of bench/results/*/results.json; schema.json beside this file is what `python bench/schema.py` prints."""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Strict):
    """One kernel's error against float64 beside plain PyTorch's in the same dtype, and its bits over ten runs."""

    kernel: str
    dtype: str
    error: float = Field(ge=0, allow_inf_nan=False)
    plain_error: float = Field(ge=0, allow_inf_nan=False)
    runs: int = Field(ge=2)
    equal_bits: bool
    passed: bool


class Ceilings(_Strict):
    """What the device reaches on the two things the kernels are measured by."""

    copy_bytes_per_second: float = Field(gt=0, description="read + write of a device copy")
    gemm_flops_per_second: float = Field(gt=0, description="a square matrix product in the dtype of the run")


class Measurement(_Strict):
    """One contestant at one size: forward and backward together, or a whole optimiser step."""

    kernel: str
    contestant: str
    tokens: int = Field(gt=0, description="rows; of adamw, thousands of parameters")
    milliseconds: float = Field(gt=0, description="median")
    fastest: float = Field(gt=0)
    slowest: float = Field(gt=0)
    repeats: int = Field(gt=0)
    error: float | None = Field(
        ge=0, description="largest of its results, loss and gradients, against float64; None if they are others"
    )
    peak_bytes: int | None = Field(ge=0, description="allocated at most beyond the inputs; None off the GPU")
    gradient_bytes: int = Field(ge=0, description="of that, gradients")
    bytes_per_second: float | None = Field(description="the least traffic that the operation needs, by its time")
    flops_per_second: float | None = Field(description="of its matrix products alone")


class EqualWork(_Strict):
    """A contestant of the training step beside documents that are trained on one at a time, small weights."""

    contestant: str
    loss_error: float = Field(ge=0, description="relative")
    gradient_error: float = Field(ge=0, description="of all gradients as one vector, relative to its norm")
    bound: float = Field(gt=0, description="of both; who exceeds it isn't timed")
    passed: bool


class Training(_Strict):
    """Forward and backward of one micro-batch, or a whole optimiser step over several."""

    model: str
    contestant: str
    sequences: int = Field(gt=0, description="of a micro-batch")
    tokens: int = Field(gt=0, description="of a micro-batch, padding counted")
    micro_batches: int = Field(gt=0)
    optimiser: bool = Field(description="whether the AdamW step is included")
    checkpointing: str = Field(description="what of a layer backward computes again; its FLOPs aren't counted")
    moments: str | None = Field(description="dtype of AdamW's moments")
    milliseconds: float = Field(gt=0, description="median")
    fastest: float = Field(gt=0)
    slowest: float = Field(gt=0)
    repeats: int = Field(gt=0)
    turns: int = Field(default=1, gt=0, description="that the runs were made in; others had theirs between them")
    loss: float = Field(description="of the first micro-batch, before any step")
    flops: float = Field(gt=0, description="6 N + 3.5 attention, and 2 N + attention of the reference")
    flops_per_second: float = Field(gt=0)
    gemm_share: float = Field(gt=0, description="of the rate of a square product in the same run")
    tokens_per_second: float = Field(gt=0)
    peak_bytes: int | None = Field(ge=0, description="allocated at most; None off the GPU")
    resident_bytes: dict[str, int] | None = Field(description="of that, what lives all the time, by category")
    planned_bytes: dict[str, int] | None = Field(description="what `vikhr-fast plan` says, by category")


class Skipped(_Strict):
    """A contestant that could not run here, and why."""

    kernel: str
    contestant: str
    reason: str


class DeviceState(_Strict):
    """What nvidia-smi says of the GPU; None where it says nothing."""

    after: str = Field(description="the measurement that just ended")
    sm_mhz: float | None
    memory_mhz: float | None
    watts: float | None
    watts_limit: float | None
    celsius: float | None


class Results(_Strict):
    """One run of bench/gpu.py."""

    version: Literal[1] = 1
    dry_run: bool
    how: str = Field(default="", description="what was run, where it isn't the command as it stands")
    commit: str
    created: str
    device: str
    dtype: str
    versions: dict[str, str]
    checks: list[Check]
    ceilings: Ceilings
    measurements: list[Measurement]
    equal_work: list[EqualWork] = []
    training: list[Training] = []
    skipped: list[Skipped]
    left_out: list[str] = Field(default=[], description="steps that --budget had no time for")
    device_states: list[DeviceState] = []


if __name__ == "__main__":
    print(json.dumps(Results.model_json_schema(), indent=2))
