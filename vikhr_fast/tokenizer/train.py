"""Section 3.1 of the paper: a SentencePiece BPE tokenizer for the new language."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vikhr_fast._native import WordCounts
from vikhr_fast.data.read import named
from vikhr_fast.data.text_lines import MAX_MEGABYTES, line_bytes
from vikhr_fast.errors import InputError, require
from vikhr_fast.io.console import logger
from vikhr_fast.io.files import atomic_directory, refuse_existing
from vikhr_fast.tokenizer.export import CHAT_PIECES, MODEL_NAME, export_tokenizer
from vikhr_fast.tokenizer.pieces import unreachable_pieces
from vikhr_fast.tokenizer.word_counts import count_words

_WORDS_AT_ONCE = 10_000
_CONTROL_FORM = r"(?!<unk>$|<s>$|</s>$|<0x[0-9A-F]{2}>$)[^\s▁]{1,100}"
_SETTINGS: dict[str, Any] = {
    "input_format": "tsv", "model_type": "bpe", "byte_fallback": True, "split_digits": True,
    "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": True,
    "allow_whitespace_only_pieces": True, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "minloglevel": 2,
    "num_threads": 1,  # it is written into the model; more help only with counting words
}  # fmt: skip


@dataclass(frozen=True)
class Learning:
    """What learning pieces from text takes."""

    input: tuple[Path, ...]
    """Text to learn from: files (.txt in paragraphs, .jsonl, .parquet; .txt and .jsonl also as .gz or .zst), patterns
    such as 'news/*.jsonl.gz', or data sets of the Hub, hf:OWNER/NAME@COMMIT[/CONFIG[/SPLIT]]."""
    output: Path
    """Directory to make, with the files that transformers, vLLM and llama.cpp read."""
    weights: tuple[float, ...] = ()
    """Share of each input in the text learnt from, in any unit; without it each counts as large as it is."""
    vocab_size: int = 40_000
    """Number of pieces, with the special pieces, the 256 bytes and a base's counted in; 40,000 in the paper."""
    character_coverage: float = 0.99995
    """Share of the text's characters that have a piece of their own; the rarest others are spelt in bytes."""
    control: tuple[str, ...] = ()
    """Further control pieces besides <|im_start|> and <|im_end|>, which text never contains: '<|tool|>', say."""
    reserved: int = 0
    """Number of control pieces <|reserved_0|>, ... to keep for later use."""
    max_words: int = 1_000_000
    """Different words to count at most; past it the rarer half is forgotten."""
    text_field: str = "text"
    """JSONL field or Parquet column that holds the text."""
    max_line: float = MAX_MEGABYTES
    """MB that a line, or a document of a .txt file, may take; a longer one is refused."""


@dataclass(frozen=True)
class TrainTokenizer(Learning):
    """Trains a SentencePiece BPE tokenizer with the settings of Llama and Mistral.

    The text is streamed once to count its words, and SentencePiece learns from these in one thread: memory is bounded
    by --max-words, whatever the size of the corpus. The same input and options give the same bytes.
    """


def train_tokenizer(options: TrainTokenizer) -> None:
    """Trains the tokenizer and writes `options.output`, complete or not at all.

    Raises:
        InputError: an impossible option, unreadable or empty input, a vocabulary size that the text cannot fill or
            that is too small for its characters.
    """
    control = control_pieces(options)
    refuse_existing(options.output)
    words = count_words(options.input, options.weights, options.text_field, options.max_words, line_bytes(options))
    model = _train(options, words, control)
    with atomic_directory(options.output) as directory:
        (directory / MODEL_NAME).write_bytes(model)
        export_tokenizer(directory / MODEL_NAME, directory)
        if unreachable := unreachable_pieces(directory / MODEL_NAME):
            logger.warning(f"{options.output}: {len(unreachable)} pieces can never be encoded: {unreachable[:10]}")


def control_pieces(options: Learning) -> list[str]:
    """The chat pieces, further ones, and the reserved ones; InputError where an option is impossible."""
    require(
        options,
        vocab_size=(options.vocab_size > 0, "positive"),
        character_coverage=(0.98 <= options.character_coverage <= 1, "from 0.98 to 1"),
        reserved=(options.reserved >= 0, "0 or more"),
    )
    pieces = [*CHAT_PIECES, *options.control, *map("<|reserved_{}|>".format, range(options.reserved))]
    for piece in options.control:
        if pieces.count(piece) > 1 or not re.fullmatch(_CONTROL_FORM, piece):
            raise InputError(f"--control {piece!r}: must be new, have no spaces and 1 to 100 characters")
    return pieces


def _rows(words: WordCounts) -> Iterator[str]:
    """Words and their counts as SentencePiece's TSV, without the space that it puts in front of each."""
    for start in range(0, len(words), _WORDS_AT_ONCE):
        for word, count in words.words(start, min(start + _WORDS_AT_ONCE, len(words))):
            if text := word.removeprefix(" "):
                yield f"{text}\t{count}"


def _train(options: TrainTokenizer, words: WordCounts, control: list[str]) -> bytes:
    """The trained model as SentencePiece serialises it."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_rows(words),
            model_writer=model,
            vocab_size=options.vocab_size,
            character_coverage=options.character_coverage,
            control_symbols=control,
            **_SETTINGS,
        )
    except (RuntimeError, OSError) as error:
        raise _explained(str(error), options) from None
    return model.getvalue()


def _explained(message: str, options: TrainTokenizer) -> InputError:
    """SentencePiece's complaint in the words of our options."""
    size = f"{named(options.input)}: vocab_size {options.vocab_size}"
    if found := re.search(r"too high .* value <= (\d+)", message):
        return InputError(f"{size}: too little text for it; give more, or at most --vocab-size {found[1]}")
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InputError(f"{size}: too small for the characters of the text; give at least --vocab-size {found[1]}")
    return InputError(f"{named(options.input)}: SentencePiece refuses: {' '.join(message.split())}")
