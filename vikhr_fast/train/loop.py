"""The training loop, for pre-training and instruction tuning alike."""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vikhr_fast.config import TrainConfig, config_values
from vikhr_fast.console import logger
from vikhr_fast.corpus.shard import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import Score, score_shards
from vikhr_fast.files import sha256_of
from vikhr_fast.model import Mistral, ModelConfig
from vikhr_fast.model_config import read_config
from vikhr_fast.objective import Objective
from vikhr_fast.run_directory import record_run
from vikhr_fast.train.checkpoint import (
    TrainState,
    complete_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from vikhr_fast.train.data import Batch, PackedCorpus, StepLoader
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.metrics import MetricsWriter, StepMetrics
from vikhr_fast.train.optimizer import build_optimizer, learning_rate
from vikhr_fast.train.sharding import Ranks, fsdp_module, load_sharded, process_group, save_gathered

MODEL, CHECKPOINTS, TOKENIZER = "model", "checkpoints", "tokenizer.model"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_NOT_TOKENIZER = {"config.json", "adapt.json", "model.safetensors.index.json"}


def train(config: TrainConfig) -> Path:
    """Runs training from the last complete checkpoint, if there is one, to the end.

    Returns:
        The trained model's Hugging Face directory, `config.output / "model"`.

    Raises:
        InputError: an input is missing, damaged or doesn't fit; or the loss is no longer finite.
        SystemExit: a signal ended the run, after a checkpoint; the code is in `errors.ExitCode`.
    """
    with Interruption() as interruption, process_group(config.runtime) as ranks:
        return Training(config, ranks, interruption).run()


@dataclass(frozen=True)
class Inputs:
    """What a run reads, opened and checked without loading any weights."""

    train: dict[str, TokenShards]
    validation: dict[str, TokenShards]
    corpus: PackedCorpus
    model: ModelConfig
    num_steps: int


def open_inputs(config: TrainConfig) -> Inputs:
    """Opens everything that the configuration names.

    Raises:
        InputError: missing or damaged files, or ones that don't fit each other.
    """
    if not config.data.train:
        raise InputError("data.train: no source; name at least one, as in --data.train russian SHARDS")
    if unknown := sorted(config.kl.source_weights.keys() - config.data.train.keys()):
        raise InputError(f"kl.source_weights: {', '.join(unknown)}: not in data.train")
    model = read_config(config.model)
    train, validation = (_open_shards(d, config.model, model) for d in (config.data.train, config.data.validation))
    corpus = PackedCorpus(train, config.data.sequence_length, config.data.epochs, config.seed)
    steps = -(-corpus.num_sequences // config.batch.sequences_per_step)
    return Inputs(train, validation, corpus, model, min(steps, config.schedule.max_steps or steps))


def describe(config: TrainConfig, inputs: Inputs, ranks: int, first_step: int = 0) -> str:
    """What the run will do, in a line.

    Raises:
        InputError: the batch can't be divided among the ranks.
    """
    batch = config.batch
    if batch.sequences_per_step % (batch.micro_batch * ranks):
        raise InputError(
            f"batch.sequences_per_step: {batch.sequences_per_step} isn't a multiple of batch.micro_batch "
            f"{batch.micro_batch} x {ranks} ranks"
        )
    tokens = sum(shards.num_tokens - shards.num_documents for shards in inputs.train.values()) * config.data.epochs
    return (
        f"{tokens:,} tokens in {inputs.num_steps:,} steps of {batch.sequences_per_step} sequences x "
        f"{config.data.sequence_length} ({ranks} ranks x {batch.sequences_per_step // (batch.micro_batch * ranks)} "
        f"micro-batches x {batch.micro_batch}), from step {first_step}, in {config.runtime.dtype}"
    )


class Training:
    """One run: everything it needs, opened and checked, then stepped through."""

    def __init__(self, config: TrainConfig, ranks: Ranks, interruption: Interruption) -> None:
        self.config, self.ranks, self.interruption = config, ranks, interruption
        self.inputs = open_inputs(config)
        describe(config, self.inputs, ranks.count)  # its checks, before anything is written
        self.num_steps = self.inputs.num_steps
        if ranks.is_main:
            _record(config, self.inputs)
        ranks.barrier()

        compute = _DTYPES[config.runtime.dtype]
        master = torch.float64 if compute == torch.float64 else torch.float32
        self.model = load_sharded(config.model, ranks, compute=compute, storage=master)
        self.objective = Objective(
            config.kl,
            self.model,
            _frozen_reference(config, self.model, ranks, compute),
            sources=list(self.inputs.train),
            support=_shared_pieces(config, self.model.config.vocab_size, ranks),
            chunk_tokens=config.runtime.chunk_tokens or None,
        )
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.state = self._resume()

    def run(self) -> Path:
        """Trains, saves and returns the model's directory."""
        config, schedule = self.config, self.config.schedule
        final = config.output / MODEL
        if final.exists():
            return final
        with MetricsWriter(
            config.output,
            first_step=self.state.step,
            num_steps=self.num_steps,
            tensorboard=config.tensorboard,
            is_main=self.ranks.is_main,
        ) as metrics:
            if self.ranks.is_main:
                logger.info(describe(config, self.inputs, self.ranks.count, self.state.step))
            if self.state.step == 0 and schedule.validate_every:
                self._validate(metrics)
            for step, batches in self._loader().steps(self.state.step, self.num_steps):
                metrics.step(self._step(step, batches))
                done, last = self.state.step, self.state.step == self.num_steps
                if last or _is_due(done, schedule.validate_every):
                    self._validate(metrics)
                exit_code = self._agreed_exit_code()
                if last or exit_code or _is_due(done, schedule.checkpoint_every):
                    self._save_checkpoint()
                if exit_code and not last:
                    logger.info(f"stopped by a signal after step {done}; the same command goes on from there")
                    raise SystemExit(exit_code)
        self._save_model(final)
        return final

    def _step(self, step: int, batches: list[Batch]) -> StepMetrics:
        """One optimiser step: gradients of all micro-batches, clipping, AdamW."""
        started = time.monotonic()
        config, ranks = self.config, self.ranks
        rate = learning_rate(step, self.num_steps, config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        num_tokens = torch.tensor(sum(batch.trained_tokens for batch in batches), device=ranks.device)
        ranks.sum(num_tokens)
        weights = self.objective.weights(self._wide(self.state.losses))
        sums = torch.zeros(6, dtype=torch.float64, device=ranks.device)  # the loss, then objective.Losses
        for number, batch in enumerate(b.to(ranks.device) for b in batches):
            is_last = number == len(batches) - 1
            fsdp_module(self.model).set_requires_gradient_sync(is_last or config.runtime.reduce_each_micro_batch)
            loss, losses = self.objective(
                batch.tokens, batch.targets, batch.cu_seqlens, batch.sources, num_tokens=num_tokens, weights=weights
            )
            loss.backward()
            sums += torch.stack((loss.detach(), *losses))
        grad_norm = _clip(self.model, config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss_value, *loss_sums = ranks.sum(sums).tolist()  # the step's one wait for the device
        tokens, norm = int(num_tokens), float(grad_norm)
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise InputError(
                f"step {step + 1}: loss is {loss_value}, gradient norm {norm}; "
                "lower optimizer.learning_rate or optimizer.max_grad_norm and start again from the last checkpoint"
            )
        self.state = TrainState(step + 1, self.state.tokens + tokens, tuple(loss_sums))
        seconds = time.monotonic() - started
        return StepMetrics(
            step=self.state.step,
            loss=loss_value,
            ce=loss_sums[0] / tokens,
            kl=loss_sums[1] / tokens,
            grad_norm=norm,
            learning_rate=rate,
            tokens=self.state.tokens,
            tokens_per_second=tokens / seconds,
            seconds=seconds,
        )

    def _validate(self, metrics: MetricsWriter) -> None:
        if not self.inputs.validation:
            return
        config = self.config
        scores: dict[str, Score] = {
            name: score_shards(
                self.model,
                shards,
                sequence_length=config.data.sequence_length,
                micro_batch=config.batch.micro_batch,
                chunk_tokens=config.runtime.chunk_tokens or None,
                ranks=self.ranks,
            )
            for name, shards in self.inputs.validation.items()
        }
        metrics.validation(self.state.step, self.state.tokens, scores)

    def _resume(self) -> TrainState:
        directory = self.config.output / CHECKPOINTS
        if self.ranks.is_main:
            remove_leftovers(directory)
        checkpoints = complete_checkpoints(directory)
        if not checkpoints:
            return TrainState()
        return load_checkpoint(checkpoints[-1], self.model, self.optimizer)

    def _save_checkpoint(self) -> None:
        directory = self.config.output / CHECKPOINTS
        save_checkpoint(
            directory, self.model, self.optimizer, self.state, self.ranks, self.config.schedule.keep_checkpoints
        )

    def _save_model(self, directory: Path) -> None:
        """Gathers the weights into a Hugging Face directory, with the tokenizer's files beside them."""
        stored = _DTYPES[self.config.runtime.dtype]
        save_gathered(self.model, directory, self.ranks, stored, also=_tokenizer_files(self.config.model))

    def _agreed_exit_code(self) -> int:
        """The largest exit code that any rank was asked for: all stop together."""
        codes = torch.zeros(self.ranks.count, dtype=torch.int64, device=self.ranks.device)
        codes[self.ranks.rank] = self.interruption.exit_code
        return int(self.ranks.sum(codes).max())

    def _wide(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.ranks.device)

    def _loader(self) -> StepLoader:
        batch = self.config.batch
        return StepLoader(
            self.inputs.corpus,
            sequences_per_step=batch.sequences_per_step,
            micro_batch=batch.micro_batch,
            rank=self.ranks.rank,
            ranks=self.ranks.count,
        )


def _open_shards(directories: dict[str, Path], path: Path, model: ModelConfig) -> dict[str, TokenShards]:
    """Opens and verifies named shards, which must be made with the model's own tokenizer."""
    opened = {name: TokenShards.open(directory) for name, directory in directories.items()}
    tokenizer = path / TOKENIZER
    digest = sha256_of(tokenizer) if tokenizer.exists() else None
    for shards in opened.values():
        if shards.vocab_size != model.vocab_size:
            raise InputError(
                f"{shards.directory}: {shards.vocab_size} pieces, but {path} has {model.vocab_size} rows; "
                "the shards need this model's tokenizer, or the model needs `vikhr-fast adapt`"
            )
        if digest not in (None, shards.tokenizer_sha256):
            raise InputError(
                f"{shards.directory}: made with another tokenizer than {tokenizer}; "
                f"rebuild with `vikhr-fast corpus shard --tokenizer {path}`"
            )
    return opened


def _record(config: TrainConfig, inputs: Inputs) -> None:
    """Refuses to go on with a run whose config, model or data changed since it began."""
    values = config_values(config)
    values["inputs"] = {
        "shards": {name: shards.sha256 for name, shards in inputs.train.items()},
        "model": dataclasses.asdict(inputs.model),
    }
    record_run(config.output, values, may_change=("output", "runtime", "schedule", "tensorboard"))


def _frozen_reference(config: TrainConfig, model: Mistral, ranks: Ranks, compute: torch.dtype) -> Mistral | None:
    """The reference in the compute dtype: the named model, or the model as it was before the first step."""
    if config.kl.combine == "sum" and config.kl.weight == 0:
        return None
    path = config.kl.reference or config.model
    reference = load_sharded(path, ranks, compute=compute, storage=compute)
    if reference.config.vocab_size != model.config.vocab_size or not _same_tokenizer(path, config.model):
        raise InputError(f"kl.reference: {path}: another vocabulary than {config.model}'s; the KL needs the same")
    return reference.requires_grad_(False)


def _same_tokenizer(first: Path, second: Path) -> bool:
    files = [path / TOKENIZER for path in (first, second)]
    return not all(file.exists() for file in files) or sha256_of(files[0]) == sha256_of(files[1])


def _shared_pieces(config: TrainConfig, vocab_size: int, ranks: Ranks) -> Tensor | None:
    """[V] the pieces that adaptation kept from the base, for `kl.support = "shared"`."""
    if config.kl.support == "all":
        return None
    path = config.model / "adapt.json"
    try:
        base_ids = json.loads(path.read_text(encoding="utf-8"))["base_ids"]
    except (OSError, ValueError, KeyError):
        raise InputError(f'{path}: no base_ids, which kl.support = "shared" needs; run `vikhr-fast adapt`') from None
    if len(base_ids) != vocab_size:
        raise InputError(f"{path}: base_ids: {len(base_ids)} entries for a vocabulary of {vocab_size}")
    return torch.tensor([base_id is not None for base_id in base_ids], device=ranks.device)


def _clip(model: Mistral, max_norm: float) -> Tensor:
    """Scales gradients down to a global norm; returns the norm [] before."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or float("inf"))
    assert isinstance(norm, DTensor)
    return norm.full_tensor()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _tokenizer_files(model: Path) -> list[Path]:
    return [
        path for path in sorted(model.iterdir()) if path.suffix != ".safetensors" and path.name not in _NOT_TOKENIZER
    ]
