"""The training loop, for pre-training and instruction tuning alike."""

import json
import math
import resource
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vikhr_kernels
from vikhr_fast.companions import companions, tokenizer_file, tokenizer_sha256
from vikhr_fast.config import TrainConfig, config_values
from vikhr_fast.console import logger
from vikhr_fast.corpus.packing import Batch, PackedCorpus, StepLoader
from vikhr_fast.corpus.prefetch import prefetched
from vikhr_fast.corpus.shard import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import Score, score_shards
from vikhr_fast.files import sha256_of
from vikhr_fast.model import Mistral, ModelConfig, Operations
from vikhr_fast.model_config import read_config
from vikhr_fast.objective import Objective
from vikhr_fast.plan.memory import Parameters
from vikhr_fast.plan.speed import attention_flops, peak_flops
from vikhr_fast.ranks import Ranks, process_group
from vikhr_fast.run_directory import locked, record_run
from vikhr_fast.train.checkpoint import Checkpoints, TrainState, complete_checkpoints, step_of
from vikhr_fast.train.interruption import Interruption
from vikhr_fast.train.metrics import MetricsWriter, StepMetrics, forget_steps_after
from vikhr_fast.train.optimizer import build_optimizer, learning_rate
from vikhr_fast.train.profile import phase, profiling
from vikhr_fast.train.sharding import fsdp_module, load_sharded, save_gathered
from vikhr_fast.train.split_adamw import SplitAdamW
from vikhr_fast.weights import WeightFiles
from vikhr_kernels import reference

MODEL, CHECKPOINTS, ADAPTATION = "model", "checkpoints", "adapt.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_MAY_CHANGE = (  # when a run is resumed
    "output",
    "schedule",
    "tensorboard",
    "profile",
    "kernels",
    "runtime.device",
    "runtime.threads",
    "runtime.chunk_tokens",
    "runtime.checkpointing",
    "runtime.replicas",
    "runtime.reduce_each_micro_batch",
    "runtime.timeout_seconds",
)


def train(config: TrainConfig) -> Path:
    """Runs training from the last complete checkpoint, if there is one, to the end.

    Returns:
        The trained model's Hugging Face directory, `config.output / "model"`.

    Raises:
        InputError: an input is missing, damaged or doesn't fit; or the loss is no longer finite.
        SystemExit: a signal ended the run, after a checkpoint; the code is in `errors.ExitCode`.
    """
    with Interruption() as interruption, process_group(config.runtime) as ranks, ExitStack() as stack:
        ranks.on_main(lambda: open_inputs(config))  # reads every byte once, on one rank
        inputs = open_inputs(config, verify=False)
        describe(config, inputs, ranks.count)  # its checks, before anything is written
        ranks.on_main(lambda: stack.enter_context(locked(config.output)))
        ranks.on_main(lambda: _record(config, inputs))
        final = config.output / MODEL
        if final.exists():
            _refuse_longer(config, inputs)
            return final
        return Training(config, inputs, ranks, interruption).run()


@dataclass(frozen=True)
class Inputs:
    """What a run reads, opened and checked without loading any weights."""

    train: dict[str, TokenShards]
    """By name in alphabetical order: the order of documents must not depend on that of the flags."""
    validation: dict[str, TokenShards]
    corpus: PackedCorpus
    model: ModelConfig
    support: list[bool] | None
    """[V] the pieces that adaptation kept from the base, for `kl.support = "shared"`."""
    num_steps: int


def open_inputs(config: TrainConfig, verify: bool = True) -> Inputs:
    """Opens everything that the configuration names.

    Args:
        config: the run.
        verify: also compare the checksums of all shards.

    Raises:
        InputError: missing or damaged files, or ones that don't fit each other.
    """
    data = config.data
    if config.kernels == "triton" and (config.runtime.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("kernels: triton needs a GPU; use auto or eager")
    if config.optimizer.master == "split" and config.runtime.dtype != "bfloat16":
        raise InputError(f'optimizer.master: "split" needs runtime.dtype = "bfloat16", not {config.runtime.dtype!r}')
    if config.optimizer.moments == "bfloat16" and config.optimizer.master != "split":
        raise InputError('optimizer.moments: "bfloat16" needs optimizer.master = "split"')
    if not data.train:
        raise InputError("data.train: no source; name at least one, as in --data.train russian SHARDS")
    if unknown := sorted(config.kl.source_weights.keys() - data.train.keys()):
        raise InputError(f"kl.source_weights: {', '.join(unknown)}: not in data.train")
    model = _check_model(config.model)
    if data.sequence_length > model.max_position_embeddings:
        raise InputError(
            f"data.sequence_length: {data.sequence_length}, but {config.model} was made for "
            f"{model.max_position_embeddings} positions"
        )
    train, validation = (
        _open_shards(named, config.model, model, data.sequence_length, verify)
        for named in (data.train, data.validation)
    )
    corpus = PackedCorpus(train, data.sequence_length, data.epochs, config.seed)
    steps = -(-corpus.num_sequences // config.batch.sequences_per_step)
    return Inputs(
        train=train,
        validation=validation,
        corpus=corpus,
        model=model,
        support=_check_reference(config, model),
        num_steps=min(steps, config.schedule.max_steps or steps),
    )


def _operations(config: TrainConfig, ranks: Ranks) -> Operations:
    """What the models run on; the loss head, whose chunks are the same either way, is told too."""
    on_gpu = ranks.device.type == "cuda"
    vikhr_kernels.allow_triton(config.kernels != "eager")
    return vikhr_kernels if on_gpu and config.kernels != "eager" else reference


def _check_model(path: Path) -> ModelConfig:
    """The shape of a model whose files hold the tensors of that shape."""
    model = Mistral(read_config(path), device="meta")
    WeightFiles(path).require({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    return model.config


def _check_reference(config: TrainConfig, model: ModelConfig) -> list[bool] | None:
    """Checks the reference model's files; returns which pieces the KL is restricted to."""
    if not _has_reference(config):
        return None
    if (path := config.kl.reference) is not None:
        vocabularies = [tokenizer_sha256(directory) for directory in (path, config.model)]
        if _check_model(path).vocab_size != model.vocab_size or vocabularies[0] != vocabularies[1]:
            raise InputError(f"kl.reference: {path}: another vocabulary than {config.model}'s; the KL needs the same")
    if config.kl.support == "all":
        return None
    record = config.model / ADAPTATION
    try:
        base_ids = json.loads(record.read_text(encoding="utf-8"))["base_ids"]
    except (OSError, ValueError, KeyError, TypeError):
        base_ids = None
    if not isinstance(base_ids, list) or len(base_ids) != model.vocab_size:
        raise InputError(
            f'{record}: no base_ids for {model.vocab_size} pieces, which kl.support = "shared" needs; '
            "run `vikhr-fast adapt`"
        )
    return [base_id is not None for base_id in base_ids]


def _has_reference(config: TrainConfig) -> bool:
    return config.kl.combine == "slerp" or config.kl.weight > 0


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
    tokens = sum(shards.num_trained for shards in inputs.train.values())
    accumulation = batch.sequences_per_step // (batch.micro_batch * ranks)
    return (
        f"{tokens:,} tokens x {config.data.epochs} epochs, {inputs.num_steps:,} steps of "
        f"{batch.sequences_per_step} sequences x {config.data.sequence_length} ({ranks} ranks x {accumulation} "
        f"micro-batches x {batch.micro_batch}), from step {first_step}, in {config.runtime.dtype}"
    )


class Training:
    """One run: everything it needs, opened and checked, then stepped through."""

    def __init__(self, config: TrainConfig, inputs: Inputs, ranks: Ranks, interruption: Interruption) -> None:
        self.config, self.inputs, self.ranks, self.interruption = config, inputs, ranks, interruption
        compute = _DTYPES[config.runtime.dtype]
        master = torch.float64 if compute == torch.float64 else torch.float32
        ops = _operations(config, ranks)
        split = config.optimizer.master == "split"
        remainders: dict[str, Tensor] = {}
        self.model = load_sharded(
            config.model,
            ranks,
            ops=ops,
            compute=compute,
            storage=compute if split else master,
            remainders=remainders if split else None,
        )
        self.model.set_checkpointing(config.runtime.checkpointing)
        frozen = None
        if _has_reference(config):  # as it was before the first step, resumed or not
            path = config.kl.reference or config.model
            frozen = load_sharded(path, ranks, ops=ops, compute=compute, storage=compute).requires_grad_(False)
        self.objective = Objective(
            config.kl,
            self.model,
            frozen,
            sources=list(inputs.train),
            support=None if inputs.support is None else torch.tensor(inputs.support, device=ranks.device),
            chunk_tokens=config.runtime.chunk_tokens or None,
        )
        self.optimizer = (
            SplitAdamW(self.model, remainders, config.optimizer, ranks)
            if split
            else build_optimizer(self.model, config.optimizer)
        )
        self.checkpoints = Checkpoints(config.output / CHECKPOINTS, config.schedule, ranks)
        self.state = self.checkpoints.load_last(self.model, self.optimizer)
        self.num_steps = inputs.num_steps

    def run(self) -> Path:
        """Trains, saves and returns the model's directory."""
        config, schedule = self.config, self.config.schedule
        final = config.output / MODEL
        self.ranks.on_main(lambda: forget_steps_after(config.output, self.state.step))
        with (
            MetricsWriter(
                config.output,
                first_step=self.state.step,
                num_steps=self.num_steps,
                tensorboard=config.tensorboard,
                is_main=self.ranks.is_main,
            ) as metrics,
            profiling(config.output, config.profile, self.ranks) as profiled,
            closing(self._batches()) as steps,
            closing(self.checkpoints) as checkpoints,
        ):
            if self.ranks.is_main:
                logger.info(describe(config, self.inputs, self.ranks.count, self.state.step))
            if self.state.step == 0 and schedule.validate_every:
                self._validate(metrics)
            while True:
                waited = time.monotonic()
                with phase("loader"):
                    following = next(steps, None)
                if following is None:
                    break
                metrics.step(self._step(*following, time.monotonic() - waited))
                profiled()
                done, last = self.state.step, self.state.step == self.num_steps
                if last or _is_due(done, schedule.validate_every):
                    self._validate(metrics)
                exit_code, has_failed = self._agreed()
                if has_failed:
                    checkpoints.finish()  # raises
                if last or exit_code or _is_due(done, schedule.checkpoint_every):
                    checkpoints.save(self.model, self.optimizer, self.state)
                if last or exit_code:
                    checkpoints.finish()
                if exit_code and not last:
                    logger.info(f"stopped by a signal after step {done}; the same command goes on from there")
                    raise SystemExit(exit_code)
        self._save_model(final)
        return final

    def _batches(self) -> Generator[tuple[int, list[Batch]], None, None]:
        """Each step's batches, made a step ahead; pinned for a GPU."""
        steps = self._loader().steps(self.state.step, self.num_steps)
        if self.ranks.device.type == "cuda":
            steps = ((step, [batch.pinned() for batch in batches]) for step, batches in steps)
        return prefetched(steps)

    def _step(self, step: int, batches: list[Batch], data_seconds: float = 0.0) -> StepMetrics:
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
            with phase("forward"):
                loss, losses = self.objective(
                    batch.tokens, batch.targets, batch.cu_seqlens, batch.sources, num_tokens=num_tokens, weights=weights
                )
            with phase("backward"):
                loss.backward()
            sums += torch.stack((loss.detach(), *losses))
        with phase("update"):
            grad_norm = self.optimizer.update(config.optimizer.max_grad_norm)
        pairs = sum(batch.seen_pairs(self.inputs.model.sliding_window) for batch in batches)
        work = torch.tensor((sum(len(batch.tokens) for batch in batches), pairs), dtype=sums.dtype)
        sums = ranks.sum(torch.cat((sums, work.to(ranks.device))))
        reported = torch.cat((sums, torch.stack((num_tokens, grad_norm)))).tolist()
        loss_value, *loss_sums, positions, pairs, counted, norm = reported
        tokens = int(counted)
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise InputError(
                f"step {step + 1}: loss is {loss_value}, gradient norm {norm}; "
                "begin again in another --output with a lower optimizer.learning_rate"
            )
        self.state = TrainState(step + 1, self.state.tokens + tokens, tuple(loss_sums))
        seconds = data_seconds + time.monotonic() - started
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
            data_seconds=data_seconds,
            **self._work(positions, pairs, seconds),
        )

    def _work(self, positions: float, pairs: float, seconds: float) -> dict[str, Any]:
        """The step's FLOPs over all ranks, their share of the peak, and the memory's high-water mark."""
        shape, device = self.inputs.model, self.ranks.device
        n, attention = Parameters.of(shape).multiplied, attention_flops(shape, pairs)
        flops = 6 * n * positions + 3.5 * attention
        on_gpu = device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(device)) if on_gpu else None
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "flops": flops,
            "reference_flops": (2 * n * positions + attention) if _has_reference(self.config) else 0.0,
            "mfu": None if peak is None else flops / seconds / self.ranks.count / peak,
            "memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else resident,
        }

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
        mean = sum(score.bits_per_byte for score in scores.values()) / len(scores)
        self.state = replace(self.state, validation=mean)
        metrics.validation(self.state.step, self.state.tokens, scores)

    def _save_model(self, directory: Path) -> None:
        """Gathers the weights into a Hugging Face directory, with the tokenizer's files beside them."""
        stored = _DTYPES[self.config.runtime.dtype]
        save_gathered(self.model, directory, self.ranks, stored, also=companions(self.config.model))

    def _agreed(self) -> tuple[int, bool]:
        """The largest exit code that any rank was asked for, and whether any could not write: all stop together."""
        mine = torch.zeros((2, self.ranks.count), dtype=torch.int64, device=self.ranks.device)
        mine[:, self.ranks.rank] = torch.tensor((self.interruption.exit_code, self.checkpoints.has_failed))
        exit_code, has_failed = self.ranks.sum(mine).amax(dim=1).tolist()
        return exit_code, bool(has_failed)

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


def _open_shards(
    directories: dict[str, Path], path: Path, model: ModelConfig, sequence_length: int, verify: bool
) -> dict[str, TokenShards]:
    """Opens named shards, which must be made with the model's own tokenizer; conversations of which must fit whole."""
    opened = {name: TokenShards.open(directory, verify) for name, directory in sorted(directories.items())}
    tokenizer = tokenizer_file(path)
    digest = sha256_of(tokenizer) if tokenizer else None
    for shards in opened.values():
        is_padded = digest is not None and shards.vocab_size < model.vocab_size  # rows after those of its pieces
        if shards.vocab_size != model.vocab_size and not is_padded:
            raise InputError(
                f"{shards.directory}: {shards.vocab_size} pieces, but {path} has {model.vocab_size} rows; "
                "the shards need this model's tokenizer, or the model needs `vikhr-fast adapt`"
            )
        if digest not in (None, shards.tokenizer_sha256):
            raise InputError(
                f"{shards.directory}: made with another tokenizer than {tokenizer}; "
                f"rebuild with `vikhr-fast corpus shard --tokenizer {path}`"
            )
        if shards.has_mask and (longest := int(shards.lengths.max()) - 1) > sequence_length:
            raise InputError(
                f"{shards.directory}: a conversation takes {longest} positions, which data.sequence_length "
                f"{sequence_length} would part from its beginning; make it {longest} or more, or the shards anew"
            )
    return opened


def _record(config: TrainConfig, inputs: Inputs) -> None:
    """Refuses to go on with a run whose config, model, reference or data changed since it began."""
    values = config_values(config)
    values["inputs"] = {
        "train": {name: shards.sha256 for name, shards in inputs.train.items()},
        "validation": {name: shards.sha256 for name, shards in inputs.validation.items()},
        "model": _digests(config.model),
        "reference": _digests(config.kl.reference) if config.kl.reference else None,
    }
    record_run(config.output, values, may_change=_MAY_CHANGE)


def _digests(model: Path) -> dict[str, str]:
    files = (*sorted(model.glob("*.safetensors")), model / "config.json", model / ADAPTATION)
    return {file.name: sha256_of(file) for file in files if file.exists()}


def _refuse_longer(config: TrainConfig, inputs: Inputs) -> None:
    """A finished run has its model; one asked to be longer must say that the model may go."""
    done = max(map(step_of, complete_checkpoints(config.output / CHECKPOINTS)), default=inputs.num_steps)
    if done < inputs.num_steps:
        final = config.output / MODEL
        raise InputError(f"{final}: finished at step {done}; remove it to go on to step {inputs.num_steps}")


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
