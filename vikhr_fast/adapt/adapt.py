"""Section 3.1 of the paper: a model gets the embedding matrix and LM head of a new vocabulary.

A piece that the base model knows keeps its row in both matrices, bit for bit, unless the head is to say shares, too. A
new piece gets the mean of the rows of the base's pieces for the same text. Unknown, BOS, EOS and padding are matched by
role, whatever they are called. All other tensors are copied as bytes. A byte-level base may get its own vocabulary
extended, or a SentencePiece one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vikhr_fast.adapt.measure import bits_per_byte
from vikhr_fast.adapt.rows import Init, RowMaker, find_sources, piece_frequencies
from vikhr_fast.adapt.shares import find_shares
from vikhr_fast.adapt.untie import untie_head
from vikhr_fast.adapt.vocabularies import (
    ByteLevelVocabulary,
    Vocabulary,
    base_vocabulary,
    new_vocabulary,
    require_fitting,
)
from vikhr_fast.data.sources import named_sources
from vikhr_fast.errors import InputError, require
from vikhr_fast.io.files import json_text, refuse_existing, sha256_of, write_text
from vikhr_fast.io.guarded import read_json
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.io.resumable import resumable_directory
from vikhr_fast.model.config import CONFIG_NAME, ModelConfig, read_config
from vikhr_fast.model.weights import EMBEDDING, HEAD, MAX_SHARD_BYTES, WeightFiles, write_weights
from vikhr_fast.tokenizer.export import CHAT_PIECES

REPORT_NAME = "adapt.json"
_GENERATION_NAME = "generation_config.json"
_ROLES = ("bos", "eos", "pad")
_COUNTING: tuple[Init, ...] = ("mean-and-share", "frequency-weighted-mean")
_NO_LONGER_TRUE = ("quantization_config", "rope_scaling")  # the weights are plain, and rope_parameters say the second


@dataclass(frozen=True)
class Adapt:
    """Gives a Mistral or Llama model a new vocabulary; the rest of its weights stay as they are.

    Interrupted, the same command goes on with the files of weights that are still missing; they wait in
    OUTPUT.partial.
    """

    base: Path
    """Hugging Face directory of the base: config.json, safetensors, tokenizer.model or a byte-level tokenizer.json."""
    output: Path
    """Directory to make: a Hugging Face directory with the new tokenizer, and adapt.json."""
    tokenizer: Path | None = None
    """The new tokenizer: a directory with tokenizer.model or, for a byte-level base, its tokenizer.json extended; or
    such a file. Without it, --untie-head alone is done: the vocabulary stays, of whatever kind, and so do the files
    beside the weights."""
    init: Init = "mean"
    """Rows of new pieces: the mean of the base's rows for the same text (the paper's); this and, in all rows of a head
    of its own, the share that a piece has of the texts that begin as it does (a better start, docs/byte-level.md); for
    ablations random ones as spread as the base's, the mean of all rows, or the mean weighted by how frequent the base's
    pieces are."""
    frequencies: tuple[Path, ...] = ()
    """Text like that of training, to count pieces in for --init mean-and-share (new ones; the base is loaded, too) and
    frequency-weighted-mean (the base's): files, patterns, or hf: data sets."""
    text: tuple[str, ...] = ()
    """Texts to predict, NAME=SOURCE, as in ru=held/ru.txt en=held/en.txt: bits per byte of the base and of the result,
    which show at once what a new vocabulary costs either language before any training. Both models are loaded."""
    base_bos: str | None = None
    """For a byte-level base: its token that begins a text in pre-training, where tokenizer_config.json names one of
    chats, as that of many tuned models. The BOS of a SentencePiece tokenizer continues it; an extended one has it."""
    base_eos: str | None = None
    """The same for the token that ends a text; many bases have one for both, as <|endoftext|>."""
    pad_to_multiple: int = 1
    """Add rows until their number is a multiple of this, 64 say. They are defined, and no text is encoded to them; they
    have less than the average probability, and generation_config.json forbids them."""
    untie_head: bool = False
    """Write an LM head of its own where the base uses its embedding matrix for both."""
    seed: int = 0
    """Of --init random."""


def adapt(options: Adapt) -> dict[str, Any]:
    """Writes `options.output`, complete or not at all.

    Memory holds one of the base's tensors and a block of new rows at a time; texts and shares need the model besides.

    Rows of the base that no piece of its tokenizer.model has are left out, but for control tokens of a name that the
    new vocabulary has, too.

    Returns:
        The report: counts of pieces `by_role`, `copied`, `averaged` (new rows, by whatever `init`) and, among these,
        `averaged_with_bytes` (the base spells some of their text in bytes); `unspelt`, new pieces with bytes for which
        the base has no token; the `worst` rows, those made of most pieces; `vocab_size` and how many of these rows are
        `padding`; what of the base is `left_out`: added tokens, rows that pad its matrices, buffers and settings of its
        config.json; SHA-256 of both tokenizer files; and, with texts, their `bits_per_byte`, `before` and `after`. In
        adapt.json there are `base_ids` too: for each new id the id of the base that it continues, or null.

    Raises:
        InputError: a file is missing or damaged, the model is none that can be adapted, or its vocabulary and its
            weights do not match; OUTPUT exists, or OUTPUT.partial holds other work.
    """
    if options.tokenizer is None:
        _require_untying_alone(options)
        return untie_head(options.base, options.output)
    require(options, pad_to_multiple=(options.pad_to_multiple >= 1, "positive"))
    if (options.init in _COUNTING) != bool(options.frequencies):
        raise InputError(f"--frequencies: --init {' and '.join(_COUNTING)} need it, and nothing else does")
    texts = named_sources("--text", options.text)
    refuse_existing(options.output)
    named = {"bos": options.base_bos, "eos": options.base_eos}
    roles = {role: token for role, token in named.items() if token is not None}
    base, new = base_vocabulary(options.base, roles), new_vocabulary(options.tokenizer)
    require_fitting(base, new)
    config, weights = read_config(options.base), WeightFiles(options.base)
    padding_left_out = base.padding_rows(config.vocab_size)
    heads = _choose_head(options, weights, config)

    sources = find_sources(base, new)
    frequencies = shares = None
    if options.init == "frequency-weighted-mean":
        frequencies = piece_frequencies(base.file, options.frequencies)
    elif options.init == "mean-and-share":
        if HEAD not in heads:
            advice = "shares in a matrix that is the embedding, too, spoilt training; add --untie-head"
            raise InputError(f"--init mean-and-share: the head of {options.base} is tied, and {advice}")
        shares = find_shares(options.base, base.roles, sources.first_ids, new.file, options.frequencies)
    padding = -len(new.tokens) % options.pad_to_multiple
    maker = RowMaker(sources, options.init, frequencies, shares, padding, options.seed)
    report = {
        **sources.report(new),
        "init": options.init,
        "vocab_size": maker.rows,
        "padding": padding,
        "left_out": {
            "added_tokens": [text for text, index in base.added_tokens.items() if index not in sources.base_ids],
            "padding_rows": padding_left_out,
            "buffers": len(weights.ignored),
            "settings": [name for name in _NO_LONGER_TRUE if read_json(options.base / CONFIG_NAME).get(name)],
        },
        "base_tokenizer_sha256": sha256_of(base.file),
        "tokenizer_sha256": sha256_of(new.file),
    }
    record = {"base_ids": [*sources.base_ids, *[None] * padding]}
    files = sorted(file for file in options.base.iterdir() if file.suffix in (".safetensors", ".json"))
    work = {
        "report": report | record,
        "untie_head": options.untie_head,
        "seed": options.seed,
        "frequencies": shares.counts if shares else None if frequencies is None else frequencies.tolist(),
        "base": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
        "max_shard_bytes": MAX_SHARD_BYTES,
    }
    before = bits_per_byte(options.base, texts, base.roles) if texts else {}  # first, as a text may be none
    with resumable_directory(options.output, work) as directory:
        _write_weights(weights, directory, maker, heads)
        new.export(directory, roles)
        _write_configs(options, directory, config, base, new, record["base_ids"])
        if texts:
            after = bits_per_byte(directory, texts)
            report["bits_per_byte"] = {name: {"before": before[name], "after": after[name]} for name in texts}
        write_text(directory / REPORT_NAME, json_text(report | record) + "\n")
    return report


def _require_untying_alone(options: Adapt) -> None:
    if not options.untie_head:
        raise InputError("--tokenizer: give the new one, or --untie-head to keep the base's and part its head")
    if options != Adapt(options.base, options.output, untie_head=True):
        raise InputError("--tokenizer: options but --base, --output and --untie-head are of a new one's rows; give it")


def _choose_head(options: Adapt, weights: WeightFiles, config: ModelConfig) -> dict[str, str]:
    """The matrices that the adapted model has, and which of the base's each is made of."""
    tied = config.tie_word_embeddings
    if options.untie_head and not tied:
        raise InputError(f"{options.base}: its head is untied already; leave --untie-head out")
    matrix = torch.empty(config.vocab_size, config.hidden_size, device="meta")
    stored = (EMBEDDING,) if tied and HEAD not in weights.tensors else (EMBEDDING, HEAD)
    weights.require(dict.fromkeys(stored, matrix), alone=False)
    if tied and not options.untie_head:
        weights.leave_out_tied_head()
        return {EMBEDDING: EMBEDDING}
    return {EMBEDDING: EMBEDDING, HEAD: EMBEDDING if tied and not weights.has_own_head() else HEAD}


def _write_weights(weights: WeightFiles, directory: Path, maker: RowMaker, matrices: dict[str, str]) -> None:
    """The base's tensors, with rows of the new vocabulary in the `matrices`, each made of the one it names."""
    tensors = weights.tensors | {
        name: weights.tensors[source].new_empty(maker.rows, weights.tensors[source].shape[1])
        for name, source in matrices.items()
    }
    with progress_bar("weights", len(tensors)) as advance:

        def adapted(name: str) -> Tensor | Iterator[Tensor]:
            advance(1)
            old = weights.read_finite(matrices.get(name, name))
            return maker.blocks(old, name) if name in matrices else old

        write_weights(directory, tensors, adapted, MAX_SHARD_BYTES)


def _write_configs(
    options: Adapt,
    directory: Path,
    config: ModelConfig,
    base: Vocabulary,
    new: Vocabulary,
    base_ids: list[int | None],
) -> None:
    """config.json and generation_config.json of the base, with what the vocabulary changes.

    `base_ids` are those of all rows: a row is forbidden that pads, or continues one that is forbidden in the base.
    """
    roles = base.roles if isinstance(new, ByteLevelVocabulary) else {role: new.roles.get(role) for role in _ROLES}
    token_ids = {f"{role}_token_id": index for role, index in roles.items()}
    values = {
        **read_json(options.base / CONFIG_NAME),
        **token_ids,
        "vocab_size": len(base_ids),
        # Readers of transformers 4 look for the first, of transformers 5 for the second.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
    }
    for name in _NO_LONGER_TRUE:
        values.pop(name, None)
    if options.untie_head:
        values["tie_word_embeddings"] = False
    write_text(directory / CONFIG_NAME, json_text(values, ensure_ascii=True, indent=2) + "\n")
    generation = options.base / _GENERATION_NAME
    settings = {**(read_json(generation) if generation.exists() else {}), **token_ids}
    end = new.ids.get(("control", CHAT_PIECES[1]))
    if end is not None:  # what ends an answer once the model is tuned on chats
        eos = settings.get("eos_token_id", values.get("eos_token_id"))
        ends = dict.fromkeys([*(eos if isinstance(eos, list) else [] if eos is None else [eos]), end])
        settings["eos_token_id"] = list(ends)
    listed = settings.pop("suppress_tokens", None)
    suppressed = {index for index in listed if isinstance(index, int)} if isinstance(listed, list) else set()
    forbidden = [index for index, own in enumerate(base_ids) if index >= len(new.tokens) or own in suppressed]
    if forbidden:
        settings["suppress_tokens"] = forbidden
    if generation.exists() or end is not None or forbidden:
        write_text(directory / _GENERATION_NAME, json_text(settings, ensure_ascii=True, indent=2) + "\n")
