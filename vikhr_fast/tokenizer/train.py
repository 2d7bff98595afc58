"""Section 3.1 of the paper: a SentencePiece BPE tokenizer for the new language."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vikhr_fast.corpus.read import named, read_documents
from vikhr_fast.errors import InputError
from vikhr_fast.files import atomic_directory, refuse_existing
from vikhr_fast.tokenizer.export import CHAT_PIECES, MODEL_NAME, export_tokenizer

# SentencePiece drops longer lines without a word, and addresses the characters of a word with 16 bits.
_LINE_CHARACTERS = 8192


@dataclass(frozen=True)
class TrainTokenizer:
    """Trains a SentencePiece BPE tokenizer with the settings of Llama and Mistral.

    The same input and options give the same bytes.
    """

    input: tuple[Path, ...]
    """Text to learn from: .txt (paragraphs), .jsonl, .parquet; .txt and .jsonl also as .gz or .zst."""
    output: Path
    """Directory to make: tokenizer.model and the files that transformers, vLLM and llama.cpp read."""
    vocab_size: int = 40_000
    """Number of pieces, with the special pieces and the 256 bytes counted in; 40,000 in the paper."""
    character_coverage: float = 0.99995
    """Share of the text's characters that get a piece of their own; the rarest others are spelt in bytes."""
    max_lines: int = 10_000_000
    """Learn from at most this many lines (over 100), a random sample of all with a fixed seed; memory grows with it."""
    text_field: str = "text"
    """JSONL field or Parquet column that holds the text."""


def train_tokenizer(options: TrainTokenizer) -> None:
    """Trains the tokenizer and writes `options.output`, complete or not at all.

    Raises:
        InputError: an impossible option, unreadable or empty input, a vocabulary size that the text cannot fill or
            that is too small for its characters.
    """
    _refuse_impossible(options)
    refuse_existing(options.output)
    model = _train(options)
    with atomic_directory(options.output) as directory:
        (directory / MODEL_NAME).write_bytes(model)
        export_tokenizer(directory / MODEL_NAME, directory)


def _refuse_impossible(options: TrainTokenizer) -> None:
    """Raises InputError for values that SentencePiece refuses in words of its own."""
    for name, possible, wanted in (
        ("vocab-size", options.vocab_size > 0, "positive"),
        ("character-coverage", 0.98 <= options.character_coverage <= 1, "from 0.98 to 1"),
        ("max-lines", options.max_lines > 100, "more than 100"),
    ):
        if not possible:
            raise InputError(f"--{name} {getattr(options, name.replace('-', '_'))}: must be {wanted}")


def _lines(options: TrainTokenizer) -> Iterator[str]:
    """The lines of all documents: no piece holds a newline, which stays the byte <0x0A> as in Llama and Mistral."""
    for document in read_documents(options.input, options.text_field):
        for line in document.text.split("\n"):
            rest = line
            while len(rest) > _LINE_CHARACTERS:
                space = rest.rfind(" ", 1, _LINE_CHARACTERS)
                yield rest[: space if space > 0 else _LINE_CHARACTERS]
                rest = rest[space + 1 if space > 0 else _LINE_CHARACTERS :]
            yield rest


def _train(options: TrainTokenizer) -> bytes:
    """The trained model as SentencePiece serialises it."""
    import sentencepiece

    failures: list[BaseException] = []

    def lines() -> Iterator[str]:
        try:
            yield from _lines(options)
        except BaseException as error:  # SentencePiece would bury it in one of its own
            failures.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type="bpe",
            vocab_size=options.vocab_size,
            character_coverage=options.character_coverage,
            input_sentence_size=options.max_lines,
            shuffle_input_sentence=True,
            max_sentence_length=4 * _LINE_CHARACTERS,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(CHAT_PIECES),
            num_threads=1,  # it is written into the model; more help only with counting words
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if failures:
            raise failures[0] from None
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
