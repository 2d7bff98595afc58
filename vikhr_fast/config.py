"""The training configuration: nested frozen dataclasses, filled from a TOML preset, then from the command line."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field
from pydantic_core import ErrorDetails

from vikhr_fast.errors import InputError
from vikhr_fast.io import guarded

PRESETS = Path(__file__).parent / "presets"

_Config = TypeVar("_Config")

# Strict: "3" is no number, true is no 1.
Flag = Annotated[bool, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
_Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Sequences = Annotated[int, Field(strict=True, ge=1, le=2**20)]

STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how documents become sequences."""

    train: dict[str, Path]
    """Token shards by source name; every document of every source once an epoch."""
    validation: dict[str, Path] = field(default_factory=dict)
    """Held-out token shards by name; each is reported as bits per byte and as loss per token."""
    sequence_length: Annotated[int, Field(strict=True, ge=2, le=2**20)] = 1024
    """Tokens a sequence; whole documents are packed into it, longer ones become consecutive windows."""
    validation_window: Annotated[int, Field(strict=True, ge=0, le=2**20)] = 0
    """Tokens a window of validation; 0 is sequence_length. Scores compare at one length; `vikhr-fast evaluate` has
    1,024."""
    epochs: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 1
    """Passes over the documents, each in a new order; 10,000 at most, as all orders are made at the start."""

    @property
    def window_of_validation(self) -> int:
        """In tokens."""
        return self.validation_window or self.sequence_length


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many sequences a step takes. Accumulation is sequences_per_step / (micro_batch x ranks)."""

    micro_batch: _Sequences = 3
    """Sequences a rank runs through the model at once."""
    sequences_per_step: _Sequences = 3072
    """Sequences an optimiser step, over all ranks and micro-batches: the run is the same on any number of ranks."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its learning-rate schedule and gradient clipping."""

    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    beta1: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.9
    """Decay of the gradient's running mean."""
    beta2: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.95
    """Decay of the squared gradient's running mean."""
    eps: Positive = 1e-8
    """Added to the square root of the squared gradient's mean."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay of matrices (embeddings and head included); norm scales aren't decayed."""
    master: Literal["float32", "split"] = "float32"
    """Master weights as float32 tensors, or split: the bf16 parameters and the 16 bits that they lack, for one large
    GPU. The same update either way; split needs runtime.dtype = "bfloat16"."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the running means. bfloat16 saves 4 bytes a parameter, rounds stochastically, and is only for split
    masters."""
    max_grad_norm: NotNegative = 1.0
    """Global gradient norm above which gradients are scaled down; 0 doesn't clip."""
    warmup_steps: CountOrZero = 10
    """Steps over which the learning rate rises linearly to its peak."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """The learning rate after warm-up; cosine and linear end at final_fraction of the peak on the last step."""
    final_fraction: _Fraction = 0.1
    """Where cosine and linear end, as a fraction of the peak."""


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """The KL term of equation 1 of the paper: it holds the model near a frozen reference."""

    weight: NotNegative = 1.0
    """Factor of the KL under combine = "sum"; 0 trains on cross-entropy alone, without a reference model."""
    reference: Path | None = None
    """Directory of the reference model; none is a frozen copy of the model before step 1. One with another vocabulary,
    such as the base, reads the same text in its own tokens; where both have a token's end, sums over what their tokens
    begin with are compared."""
    direction: Literal["reverse", "forward"] = "reverse"
    """reverse is KL(model || reference), the paper's; forward is KL(reference || model)."""
    support: Literal["all", "shared"] = "all"
    """shared restricts the KL, renormalised, to the pieces that adaptation kept from the base vocabulary."""
    combine: Literal["sum", "slerp"] = "sum"
    """slerp interpolates spherically between the vectors of per-token CE and KL."""
    slerp_factor: _Fraction = 0.5
    """0 is all cross-entropy, 1 all KL."""
    fraction: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    """Share of each step's sequences whose KL is taken, times its inverse, drawn by the seed: the expected gradient is
    that of the whole KL (under slerp, given its weights). The reference runs in the micro-batches that have them."""
    sources: list[str] = field(default_factory=list)
    """Training sources whose documents take the KL, such as a replay; all where none is named."""
    source_weights: dict[str, Annotated[float, Field(strict=True, ge=0)]] = field(default_factory=dict)
    """Further factor of the KL on documents of the named training sources; 1 where not named."""

    @property
    def needs_reference(self) -> bool:
        """Whether the objective has the frozen model."""
        return self.combine == "slerp" or self.weight > 0


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What the run computes with."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA where there is a GPU."""
    dtype: Literal["float32", "bfloat16", "float64"] = "bfloat16"
    """Dtype of forward and backward. Master weights are float32, or float64 when this is."""
    threads: Annotated[int, Field(strict=True, ge=0, le=4096)] = 0
    """CPU threads a rank; 0 shares the cores among the ranks. Bit-exact repeats need the same number."""
    chunk_tokens: CountOrZero = 0
    """Tokens whose logits exist at once; 0 lets the loss head choose."""
    replicas: Count = 1
    """Groups of ranks, each with all weights sharded inside it (HSDP): as many as nodes keeps gathering in a node."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """What backward computes again of each layer, to keep less: nothing, all but attention, or all."""
    keep_gathered: Flag = False
    """Gather the trained weights once a step, not twice a micro-batch: more memory; no effect on one rank."""
    whole_reference: Flag = False
    """Each rank has the whole reference, which is never gathered: more memory; no effect on one rank."""
    reference_micro_batches: Count = 1
    """Micro-batches that one forward of the reference takes; a sharded reference is gathered once for all of them."""
    reduce_each_micro_batch: Flag = False
    """Reduce gradients each micro-batch, not once a step: more communication, less memory; no effect on one rank."""
    timeout_seconds: Annotated[int, Field(strict=True, ge=1, le=10**7)] = 1800
    """How long a rank waits for the others before the run fails."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What happens at which step."""

    max_steps: Count | None = None
    """Stop after this step; none trains all epochs."""
    validate_every: CountOrZero = 0
    """Steps between validations; 0 validates after the last step only."""
    checkpoint_every: CountOrZero = 0
    """Steps between checkpoints; 0 saves after the last step only. SIGTERM saves too."""
    keep_checkpoints: CountOrZero = 2
    """How many of the newest checkpoints stay on disk; 0 is one until the model is written, and then none."""
    keep_every: CountOrZero = 0
    """Checkpoints of steps that are multiples of this stay, too."""
    keep_best: Flag = False
    """So does the one with the fewest bits per byte, over all validation sets, by validation.jsonl."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Benchmarks that the model is asked along training, by all ranks together (extra `eval`)."""

    tasks: dict[str, Path] = field(default_factory=dict)
    """Questions by benchmark: ruxnli, ru_mmlu, ru_mmlu_pro; files or data sets as `vikhr-fast evaluate` takes them."""
    every: CountOrZero = 0
    """Steps between evaluations, the first before training; 0 evaluates after the last step only."""
    limit: CountOrZero = 0
    """Questions of each benchmark, taken from all over it; 0 asks all."""


@dataclass(frozen=True, kw_only=True)
class IncidentsConfig:
    """Which steps are skipped, on all ranks alike, instead of spoiling the weights; each goes to incidents.jsonl."""

    spike_ratio: NotNegative = 3.0
    """Loss above this multiple of the median of the last 32 steps' is a spike; 0 skips only what isn't finite."""
    most_in_a_row: Count = 5
    """The run stops when so many steps one after another had to be skipped."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Trains all weights with CE + KL (paper, section 3.2). Start it under torchrun for several GPUs."""

    __pydantic_config__ = STRICT  # pydantic hands it on to the sections

    model: Path
    """Hugging Face directory of the model to train, usually the output of `vikhr-fast adapt`."""
    output: Path
    """Run directory: config, metrics, checkpoints and, at the end, the model. An interrupted run in it is resumed."""
    data: DataConfig
    """What is trained on."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """How many sequences a step takes."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    kl: KLConfig = field(default_factory=KLConfig)
    """The KL term."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """What the run computes with."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Validation, checkpoints, end."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Benchmarks along training."""
    incidents: IncidentsConfig = field(default_factory=IncidentsConfig)
    """Steps to skip."""
    kernels: Literal["auto", "triton", "eager"] = "auto"
    """triton runs the kernels, eager plain PyTorch; auto is triton on CUDA, eager elsewhere."""
    seed: CountOrZero = 0
    """Seed of the data order."""
    profile: CountOrZero = 0
    """Record this many steps after the second into OUTPUT/profile: trace, operations by time, memory on a GPU."""
    tensorboard: Flag = False
    """Also write TensorBoard events (extra `tensorboard`)."""
    wandb: Flag = False
    """Also log to Weights & Biases (extra `wandb`), by its own variables: WANDB_PROJECT, WANDB_MODE=offline, ..."""


_ADAPTER = pydantic.TypeAdapter(TrainConfig)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file, or the preset of that name.

    Raises:
        InputError: the file is missing or isn't TOML, with line and column.
    """
    preset = PRESETS / f"{path}.toml"
    file = preset if not path.suffix and preset.is_file() else path
    if not file.exists():
        names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
        raise InputError(f"{path}: no such config; give a TOML file or one of the presets {names}")
    return guarded.read_toml(file)


def train_config(values: dict[str, Any], source: str) -> TrainConfig:
    """A validated configuration of nested keys and values, as TOML or JSON holds them; errors name their source.

    Raises:
        InputError: one line with every unknown key, missing key and impossible value.
    """
    return validated(_ADAPTER, values, source)


def validated(adapter: pydantic.TypeAdapter[_Config], values: object, source: str, advice: str = "") -> _Config:
    """What the adapter makes of the values; InputError, one line, as `train_config`, which ends in the advice."""
    try:
        return adapter.validate_python(values)
    except pydantic.ValidationError as error:
        raise InputError(f"{source}: {_describe(error.errors())}{advice and f'; {advice}'}") from None


def read_record(path: Path, adapter: pydantic.TypeAdapter[_Config], advice: str = "") -> _Config:
    """What the adapter makes of the JSON in a file; InputError where it can't be read or is something else."""
    return validated(adapter, guarded.read_json_value(path, advice), f"{path}: damaged", advice)


def config_with_gaps(values: dict[str, Any], source: str, gap: Any) -> TrainConfig:
    """A configuration whose missing required values are `gap`: the command line's defaults.

    Raises:
        InputError: one line with every unknown key and impossible value.
    """
    data = values.get("data", {})
    # Something that passes stands in the gaps while all else is validated.
    filled = {"model": "", "output": "", **values, "data": {"train": {}, **data} if isinstance(data, dict) else data}
    config = validated(_ADAPTER, filled, source)
    gaps = {name: gap for name in ("model", "output") if name not in values}
    return replace(config, data=config.data if "train" in data else replace(config.data, train=gap), **gaps)


def require_consistent(config: TrainConfig) -> None:
    """Checks what no field alone can.

    Raises:
        InputError: settings that exclude each other.
    """
    if config.optimizer.master == "split" and config.runtime.dtype != "bfloat16":
        raise InputError(f'optimizer.master: "split" needs runtime.dtype = "bfloat16", not {config.runtime.dtype!r}')
    if config.optimizer.moments == "bfloat16" and config.optimizer.master != "split":
        raise InputError('optimizer.moments: "bfloat16" needs optimizer.master = "split"')
    fraction, sequences = config.kl.fraction, config.batch.sequences_per_step
    if abs(fraction * sequences - round(fraction * sequences)) > 1e-9 * sequences or fraction * sequences < 0.5:
        raise InputError(
            f"kl.fraction: {fraction:g} of batch.sequences_per_step {sequences} is {fraction * sequences:g} sequences; "
            "it must be a whole number of them"
        )


def config_values(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested JSON values, the inverse of `train_config`."""
    values: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return values


def _describe(problems: list[ErrorDetails]) -> str:
    """All that is wrong in one line: dotted keys, and what each must be."""
    known = {"unexpected_keyword_argument": "unknown key", "missing": "missing", "missing_argument": "missing"}
    described = []
    for problem in problems:
        said = known.get(problem["type"]) or f"{problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
        described.append(": ".join([*filter(None, [".".join(map(str, problem["loc"]))]), said]))
    return "; ".join(described)
