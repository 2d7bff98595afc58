"""What a new vocabulary costs before any training: bits per byte of texts, before and after."""

import tempfile
from pathlib import Path

import vikhr_kernels
from vikhr_fast.corpus.shard import encode_documents
from vikhr_fast.data.read import Columns
from vikhr_fast.data.sources import read_source
from vikhr_fast.data.token_shards import TokenShards
from vikhr_fast.errors import InputError
from vikhr_fast.evaluate.perplexity import score_shards
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.model.devices import device_of
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.tokenizer.load import load_encoder

_WINDOW = 1024  # tokens that are read at once
_MICRO_BATCH = 4


def load_network(model: Path) -> Mistral:
    """A model to look at, on the best device there is; InputError where it is none or damaged."""
    device, dtype = device_of("auto")
    ops = vikhr_kernels if device.type == "cuda" else vikhr_kernels.reference
    return Mistral.from_pretrained(model, dtype, device, ops=ops)


def bits_per_byte(model: Path, texts: dict[str, Path], roles: dict[str, int] | None = None) -> dict[str, float]:
    """Of each text, by its name, with a model and the tokenizer beside it.

    Args:
        model: its directory.
        texts: sources of documents, see `data.sources`.
        roles: ids of "bos" and "eos", where not the tokenizer's own begin and end a document.

    Raises:
        InputError: a text, the model or its tokenizer can't be read, or nothing begins and ends a document.
    """
    encoder = load_encoder(model)
    encoder.bos_id, encoder.eos_id = (
        (roles or {}).get(role, own) for role, own in (("bos", encoder.bos_id), ("eos", encoder.eos_id))
    )
    if encoder.bos_id < 0 or encoder.eos_id < 0:
        advice = "name those of a byte-level base with --base-bos and --base-eos, or leave --text out"
        raise InputError(f"{model}: its tokenizer has no BOS or no EOS, which --text needs; {advice}")
    network = load_network(model)
    found = {}
    for name, source in texts.items():
        if not (documents := list(read_source(source, Columns()))):
            raise InputError(f"--text {name}={source}: no text in it; give another")
        with tempfile.TemporaryDirectory() as scratch, progress_bar(name) as advance:
            encode_documents(Path(scratch), documents, encoder, 1 << 28, 0, lambda _: None)
            shards = TokenShards.open(Path(scratch))
            window = min(_WINDOW, network.config.max_position_embeddings)
            score = score_shards(network, shards, window=window, micro_batch=_MICRO_BATCH, advance=lambda: advance(1))
            found[name] = score.bits_per_byte
    return found
