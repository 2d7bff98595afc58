"""What a run reads: opened and checked without loading any weights, and recorded so that it can't change under it."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vikhr_fast.config import TrainConfig, config_values, config_with_gaps, require_consistent
from vikhr_fast.data.packing import PackedCorpus, num_drawn
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.questions import BenchmarkQuestions
from vikhr_fast.io.files import sha256_of
from vikhr_fast.io.run_directory import record_run
from vikhr_fast.model.mistral import ModelConfig
from vikhr_fast.plan.collectives import StepCounts
from vikhr_fast.tokenizer.files import tokenizer_file
from vikhr_fast.tokenizer.load import load_encoder
from vikhr_fast.train.evaluation import open_questions
from vikhr_fast.train.reference import ADAPTATION, Reference, open_reference, shape_of
from vikhr_kernels import Length, length_of

_MAY_CHANGE = (  # when a run is resumed; runtime.compile is of earlier versions
    "output", "schedule", "evaluation", "incidents", "tensorboard", "wandb", "profile", "kernels", "batch.micro_batch",
    "runtime.device", "runtime.threads", "runtime.chunk_tokens", "runtime.checkpointing", "runtime.compile",
    "runtime.replicas", "runtime.keep_gathered", "runtime.whole_reference", "runtime.reference_micro_batches",
    "runtime.reduce_each_micro_batch", "runtime.timeout_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What a run reads, opened and checked without loading any weights."""

    train: dict[str, TokenShards]  # by name, sorted: the order of documents mustn't depend on that of the flags
    validation: dict[str, TokenShards]
    corpus: PackedCorpus
    model: ModelConfig
    reference: Reference | None  # None where the objective has none
    questions: dict[str, BenchmarkQuestions]  # of the benchmarks that are asked along training
    num_steps: int
    length: Length  # of the documents, by which attention's tiles are chosen: whatever is in a batch


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
    require_consistent(config)
    if not data.train:
        raise InputError("data.train: no source; name at least one, as in --data.train russian SHARDS")
    for name in ("sources", "source_weights"):
        if unknown := sorted(set(getattr(config.kl, name)) - data.train.keys()):
            raise InputError(f"kl.{name}: {', '.join(unknown)}: not in data.train")
    model = shape_of(config.model)
    for name in ("sequence_length", "validation_window"):
        if (length := getattr(data, name)) > model.max_position_embeddings:
            made_for = f"{config.model} was made for {model.max_position_embeddings} positions"
            raise InputError(f"data.{name}: {length}, but {made_for}")
    train = _open_shards(data.train, config, model, verify)
    validation = _open_shards(data.validation, config, model, verify, data.validation_window)
    corpus = PackedCorpus(train, data.sequence_length, data.epochs, config.seed)
    steps = -(-corpus.num_sequences // config.batch.sequences_per_step)
    return Inputs(
        train=train,
        validation=validation,
        corpus=corpus,
        model=model,
        reference=open_reference(config, model, train),
        questions=open_questions(config),
        num_steps=min(steps, config.schedule.max_steps or steps),
        length=length_of(corpus.mean_pairs(model.sliding_window)),
    )


def describe(config: TrainConfig, inputs: Inputs, ranks: int, first_step: int = 0) -> str:
    """What the run will do, in a line.

    Raises:
        InputError: the batch can't be divided among the ranks.
    """
    batch = config.batch
    if ranks % config.runtime.replicas:
        raise InputError(f"runtime.replicas: {config.runtime.replicas} doesn't divide the {ranks} ranks")
    if batch.sequences_per_step % (batch.micro_batch * ranks):
        raise InputError(
            f"batch.sequences_per_step: {batch.sequences_per_step} isn't a multiple of batch.micro_batch "
            f"{batch.micro_batch} x {ranks} ranks"
        )
    tokens = sum(shards.num_trained for shards in inputs.train.values())
    drawn = num_drawn(config.kl.fraction, batch.sequences_per_step) if config.kl.needs_reference else 0
    counts = StepCounts.of(config, ranks)
    kl = f", KL on {drawn} sequences in {counts.compared} of these" if drawn else ""
    if inputs.reference is not None and (reader := inputs.reference.reader) is not None:
        kl += f" in {reader.num_buckets:,} buckets of text, the reference's documents {reader.ref.described_ends}"
    return (
        f"{tokens:,} tokens x {config.data.epochs} epochs, {inputs.num_steps:,} steps of "
        f"{batch.sequences_per_step} sequences x {config.data.sequence_length} ({ranks} ranks x {counts.micro_batches} "
        f"micro-batches x {batch.micro_batch}{kl}), from step {first_step}, in {config.runtime.dtype}"
    )


def _open_shards(
    directories: dict[str, Path], config: TrainConfig, model: ModelConfig, verify: bool, window: int = 0
) -> dict[str, TokenShards]:
    """Opens named shards, which must be made with the model's own tokenizer; conversations of which must fit whole."""
    opened = {name: TokenShards.open(directory, verify) for name, directory in sorted(directories.items())}
    path, setting = config.model, "validation_window" if window else "sequence_length"
    window = window or config.data.sequence_length
    tokenizer = tokenizer_file(path)
    encoder = load_encoder(path) if tokenizer else None  # refuses words that tokenizer.model doesn't know
    digest = encoder.sha256 if encoder else None
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
        if encoder and (shards.bos_id, shards.eos_id) != (encoder.bos_id, encoder.eos_id):
            raise InputError(
                f"{shards.directory}: documents begin and end with the ids {shards.bos_id} and {shards.eos_id}, "
                f"{encoder.bos_id} and {encoder.eos_id} in {path}; "
                f"rebuild with `vikhr-fast corpus shard --tokenizer {path}`"
            )
        if shards.has_mask and (longest := int(shards.lengths.max()) - 1) > window:
            raise InputError(
                f"{shards.directory}: a conversation takes {longest} positions, which data.{setting} "
                f"{window} would part from its beginning; make it {longest} or more, or the shards anew"
            )
    return opened


def record_inputs(config: TrainConfig, inputs: Inputs) -> None:
    """Refuses to go on with a run whose config, model, reference or data changed since it began."""
    values = config_values(config)
    values["inputs"] = {
        "train": {name: shards.sha256 for name, shards in inputs.train.items()},
        "validation": {name: shards.sha256 for name, shards in inputs.validation.items()},
        "model": _digests(config.model),
        "reference": _digests(config.kl.reference) if config.kl.reference else None,
    }
    if inputs.reference is not None and (reader := inputs.reference.reader) is not None:
        values["inputs"]["reference_tokenizer"] = [reader.ref.spelling.encoder.sha256, reader.ref.bos, reader.ref.eos]
    defaults = asdict(config_with_gaps({}, "no values", None))
    record_run(config.output, values, may_change=_MAY_CHANGE, defaults=defaults)


def _digests(model: Path) -> dict[str, str]:
    files = (*sorted(model.glob("*.safetensors")), model / "config.json", model / ADAPTATION)
    return {file.name: sha256_of(file) for file in files if file.exists()}
