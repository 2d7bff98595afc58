"""What is to be known of a model's or a tokenizer's directory before anything is done with it."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vikhr_fast.adapt.vocabularies import base_vocabulary
from vikhr_fast.chat.encode import ChatEncoder
from vikhr_fast.doctor.findings import Finding, Note, checked
from vikhr_fast.errors import InputError
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.model.config import CONFIG_NAME, read_config
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.model.weights import EMBEDDING, HEAD, WeightFiles
from vikhr_fast.plan.memory import Parameters
from vikhr_fast.tokenizer.added_tokens import named_tokens, read_added_tokens, refuse_words
from vikhr_fast.tokenizer.export import read_model, refuse_inexact
from vikhr_fast.tokenizer.files import TOKENIZER, tokenizer_file
from vikhr_fast.tokenizer.load import load_encoder


def is_model(path: Path) -> bool:
    """Whether a path is a directory of a model, or of a tokenizer."""
    return path.is_dir() and ((path / CONFIG_NAME).exists() or tokenizer_file(path) is not None)


def model_findings(directory: Path) -> Iterator[Finding]:
    """Of config.json, weights, LM head, numbers, tokenizer, added tokens, rows and chat template, as far as there."""
    if (directory / "adapter_config.json").exists():
        advice = "merge it into its base first (`merge_and_unload` of peft)"
        yield Finding("mend", "weights", f"{directory}: an adapter (LoRA), no model; {advice}")
        return
    if (directory / CONFIG_NAME).exists():
        yield checked("config", partial(_config, directory))
        yield checked("weights", partial(_weights, directory))
        yield checked("head", partial(_head, directory))
        yield checked("numbers", partial(_numbers, directory))
    yield (tokenizer := checked("tokenizer", partial(_tokenizer, directory)))
    if (directory / CONFIG_NAME).exists():
        yield checked("rows", partial(_rows, directory))
    if (directory / TOKENIZER).exists():
        yield (added := checked("added", partial(_added, directory)))
        if added.mark == "mend":
            return
    if tokenizer.mark != "mend":
        yield checked("chat", partial(_chat, directory))


def _config(directory: Path) -> str:
    config, values = read_config(directory), read_json(directory / CONFIG_NAME)
    count = Parameters.of(config).total
    window = f"window {config.sliding_window:,}" if config.sliding_window else "no window"
    text = f"{config.model_type}, {count:,} parameters, {config.vocab_size:,} rows, "
    text += f"{config.max_position_embeddings:,} positions, {window}"
    if values.get("quantization_config"):
        return Note(f"{text}; quantization_config beside plain weights: adapt and train leave it out")
    return text


def _weights(directory: Path) -> str:
    config, files = read_config(directory), WeightFiles(directory)
    files.require_layers(config.num_hidden_layers)
    expected = dict(Mistral(config, device="meta").named_parameters())
    if HEAD in files.tensors:
        expected[HEAD] = expected[EMBEDDING]  # `_head` says more
    files.require(expected)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in files.tensors.values())
    size = sum(tensor.nbytes for tensor in files.tensors.values())
    text = f"{len(files.tensors)} tensors, {', '.join(dtypes)}, {size / 1e9:.2f} GB"
    if files.ignored:
        return Note(f"{text}; {len(files.ignored)} buffers of rotary embeddings besides, which are read over")
    return Note(f"{text}: more than one dtype") if len(dtypes) > 1 else text


def _head(directory: Path) -> str:
    if not read_config(directory).tie_word_embeddings:
        return "of its own"
    files = WeightFiles(directory)
    is_stored = HEAD in files.tensors
    files.leave_out_tied_head()
    text = "the embedding matrix; `vikhr-fast adapt --untie-head` gives it one of its own"
    return Note(f"{text}; {HEAD} is stored all the same, and read over") if is_stored else text


def _numbers(directory: Path) -> str:
    files = WeightFiles(directory)
    with progress_bar("numbers", len(files.tensors)) as advance:
        for name in files.tensors:
            files.read_finite(name)
            advance(1)
    return "all finite"


def _tokenizer(directory: Path) -> str:
    file = tokenizer_file(directory)
    if file is None or file.name != TOKENIZER:
        encoder = load_encoder(directory)
        return f"tokenizer.json, {encoder.vocab_size:,} tokens"
    model = read_model(file)
    try:
        refuse_inexact(model, file)
    except InputError as error:
        return Note(f"good as the base of `vikhr-fast adapt` alone: {error}")
    return f"SentencePiece BPE, {len(model.pieces):,} pieces"


def _added(directory: Path) -> str:
    file = directory / TOKENIZER
    added = read_added_tokens(file, [piece.piece for piece in read_model(file).pieces])
    refuse_words(file, added)
    parts = []
    if added.control:
        parts.append(f"control tokens beside {TOKENIZER}, which have their ids: {named_tokens(added.control)}")
    if added.without_row:
        parts.append(f"no row in the weights, left out: {named_tokens(added.without_row)}")
    return Note("; ".join(parts)) if parts else f"nothing that {TOKENIZER} doesn't have"


def _rows(directory: Path) -> str:
    rows = read_config(directory).vocab_size
    padding = base_vocabulary(directory, {}).padding_rows(rows)
    return Note(f"{padding:,} of {rows:,} are padding, of no token") if padding else "one for each token"


def _chat(directory: Path) -> str:
    try:
        encoder = ChatEncoder(directory)
    except InputError as error:
        return Note(f"no tuning and no chats with it: {error}")
    return f"answers end with {encoder.tokenizer.piece(encoder.end_id)}"
