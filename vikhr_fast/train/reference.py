"""The frozen model that the KL compares with: checked, without loading any weights, and how the two are compared."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vikhr_fast.config import TrainConfig
from vikhr_fast.data.packing import Batch
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.io.files import sha256_of
from vikhr_fast.io.guarded import read_json
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.tokenizer.buckets import common_buckets
from vikhr_fast.tokenizer.files import tokenizer_file
from vikhr_fast.tokenizer.load import same_tokenizer
from vikhr_fast.tokenizer.spelling import Spelling
from vikhr_fast.train.reading import Reader, Side

ADAPTATION = "adapt.json"
_ADVICE = "run `vikhr-fast adapt` again"


@dataclass(frozen=True)
class Reference:
    """What the KL compares with."""

    model: ModelConfig
    sources: Tensor | None  # [sources] bool, whose documents take the KL; None for all
    support: list[bool] | None  # [V] the pieces that adaptation kept from the base, for `kl.support = "shared"`
    reader: Reader | None  # for another vocabulary

    def prepare(self, batch: Batch) -> Batch:
        """The batch with the KL where it is taken, and with what a reference of another vocabulary reads of it."""
        if not batch.has_kl:
            return batch
        if self.sources is not None:
            factors = torch.as_tensor(batch.kl_factor, dtype=torch.float64).expand(len(batch.tokens))
            batch = replace(batch, kl_factor=factors.where(self.sources[batch.sources], 0.0))
        return batch if self.reader is None else self.reader.read(batch)


def open_reference(config: TrainConfig, model: ModelConfig, train: dict[str, TokenShards]) -> Reference | None:
    """Checks the reference model's files; None where the objective has none.

    Raises:
        InputError: they are missing or damaged, or can't be compared with the model.
    """
    kl = config.kl
    if not kl.needs_reference:
        return None
    sources = torch.tensor([name in kl.sources for name in train]) if kl.sources else None
    own = model if kl.reference is None else shape_of(kl.reference)
    reader = None
    if kl.reference is not None and not _has_same_vocabulary(kl.reference, config.model, own, model):
        reader = _open_reader(config, kl.reference, own, model, train)
    return Reference(own, sources, _support(config, model) if kl.support == "shared" else None, reader)


def shape_of(path: Path) -> ModelConfig:
    """The shape of a model whose files hold the tensors of that shape."""
    model, _ = Mistral.without_values(path)
    return model.config


def _has_same_vocabulary(path: Path, model_path: Path, reference: ModelConfig, model: ModelConfig) -> bool:
    same = same_tokenizer(path, model_path)
    if same is None:  # right where neither has any
        same = tokenizer_file(path) is None and tokenizer_file(model_path) is None
    return same and reference.vocab_size == model.vocab_size


def _open_reader(
    config: TrainConfig, path: Path, reference: ModelConfig, model: ModelConfig, train: dict[str, TokenShards]
) -> Reader:
    for directory in (path, config.model):
        if tokenizer_file(directory) is None:
            reason = f"{path} has another vocabulary than {config.model}, and {directory} has no tokenizer"
            raise InputError(f"kl.reference: {reason} to compare them with; put its files there")
    if config.kl.support == "shared":
        reason = f"shared pieces are of one vocabulary, and {path} has another than {config.model}"
        raise InputError(f'kl.support: {reason}; leave it "all"')
    compared = config.kl.sources or tuple(train)
    if masked := [name for name in compared if train[name].has_mask]:
        reason = f"{', '.join(masked)}: conversations, which a reference with another vocabulary can't read"
        raise InputError(f"kl.sources: {reason}; name the other sources, or none with kl.weight = 0")
    own, ref = Spelling.of(config.model), Spelling.of(path)
    bos, eos = _document_ends(config.model, path, own, ref)
    for token in (bos, eos):
        if token >= reference.vocab_size:
            text = ref.encoder.piece(token)
            raise InputError(f"kl.reference: {path}: documents begin or end with {text}, for which it has no row")
    own = own.of_documents(model.vocab_size, own.encoder.bos_id, own.encoder.eos_id)
    ref = ref.of_documents(reference.vocab_size, bos, eos)
    try:
        buckets, ref_buckets = common_buckets(
            _with_rows(own.contents, model.vocab_size), _with_rows(ref.contents, reference.vocab_size),
            own.encoder.eos_id, eos,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"kl.reference: {path}: {error}") from None
    return Reader(
        Side(own, own.encoder.bos_id, own.encoder.eos_id, buckets), Side(ref, bos, eos, ref_buckets),
        reference.max_position_embeddings,
    )  # fmt: skip


def _with_rows(contents: list[bytes], rows: int) -> list[bytes]:
    """Of each row: nothing, where no token has it."""
    return (contents + [b""] * (rows - len(contents)))[:rows]


def _document_ends(model: Path, reference: Path, own: Spelling, ref: Spelling) -> tuple[int, int]:
    """The reference's tokens that begin and end a document, -1 for none.

    Those that adaptation was told, where the reference is the base; the tokenizer's own may be those of its chats.
    """
    record = model / ADAPTATION
    values = read_json(record, _ADVICE) if record.exists() else {}
    file, base_ids = tokenizer_file(reference), values.get("base_ids")
    if base_ids is not None and file is not None and values.get("base_tokenizer_sha256") == sha256_of(file):
        known = base_ids if isinstance(base_ids, list) else []
        found = []
        for index in (own.encoder.bos_id, own.encoder.eos_id):
            base_id = known[index] if 0 <= index < len(known) else None
            if index >= len(known) or not (base_id is None or _is_id(base_id, ref.encoder.vocab_size)):
                raise InputError(f"{record}: damaged: base_ids have no token of {reference} for {index}; {_ADVICE}")
            found.append(-1 if base_id is None else base_id)
        return found[0], found[1]
    return ref.encoder.bos_id, ref.encoder.eos_id


def _is_id(value: object, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size


def _support(config: TrainConfig, model: ModelConfig) -> list[bool]:
    record = config.model / ADAPTATION
    base_ids = read_json(record, _ADVICE).get("base_ids") if record.exists() else None
    if not isinstance(base_ids, list) or len(base_ids) != model.vocab_size:
        raise InputError(
            f'{record}: no base_ids for {model.vocab_size} pieces, which kl.support = "shared" needs; '
            "run `vikhr-fast adapt`"
        )
    return [base_id is not None for base_id in base_ids]
