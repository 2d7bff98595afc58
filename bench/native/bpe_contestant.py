"""Encodes text with one tokenizer, once for each stretch of text, and says how long it took: a JSON object.

    python bench/native/bpe_contestant.py '{"name": "ours", "model": DIR, "files": [...], "texts": "documents", ...}'

Every library is used in the fastest way that it offers for a list of texts, and sees the text for the first time.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import PeakMemory, report_missing, touch_memory

Ids = npt.NDArray[np.int32]
Encode = Callable[[Any], Any]  # texts -> whatever the library gives
Flatten = Callable[[Any], Ids]  # that -> the ids of all texts, one after another
Prepare = Callable[[list[str]], Any]  # texts in the form that the library wants

STRING_BYTES = 1_000_000
SPECIAL_TEXTS = ["a <s> b", "</s>", "<unk> x", "<0x41>"]  # ordinary text to SentencePiece


def join_lists(rows: Sequence[Sequence[int]]) -> Ids:
    return np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])


def ours(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    from vikhr_fast.tokenizer import BpeEncoder

    encoder = BpeEncoder.from_file(model / "tokenizer.model")
    return list, lambda texts: encoder.encode_batch(texts, threads), lambda result: result[0]


def ours_arrow(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    return in_arrow(ours(model, threads))


def in_arrow(contestant: tuple[Prepare, Encode, Flatten]) -> tuple[Prepare, Encode, Flatten]:
    """Ours, given an Arrow array."""
    import pyarrow as pa

    _, encode, flatten = contestant
    return lambda texts: pa.array(texts, pa.large_string()), encode, flatten


def sentencepiece(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    import sentencepiece as library

    processor = library.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    return list, lambda texts: processor.encode(texts, out_type=int, num_threads=threads), join_lists


def tokenizers(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    del threads  # the harness sets them for Rayon
    import tokenizers as library

    tokenizer = library.Tokenizer.from_file(str(model / "tokenizer.json"))
    batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    return (
        list,
        lambda texts: batch(texts, add_special_tokens=False),
        lambda result: join_lists([encoding.ids for encoding in result]),
    )


def gigatoken(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    import gigatoken as library

    return with_gigatoken(library.Tokenizer.from_sentencepiece(model / "tokenizer.model"), threads)


def gigatoken_bytes(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    return in_separated_bytes(gigatoken(model, threads))


def with_gigatoken(tokenizer: Any, threads: int) -> tuple[Prepare, Encode, Flatten]:
    """A tokenizer of gigatoken's, given a list of str."""
    return (
        list,
        lambda texts: tokenizer.encode_batch(texts, parallel=threads > 1),
        lambda result: np.asarray(result.layout.content.data).astype(np.int32),
    )


def in_separated_bytes(contestant: tuple[Prepare, Encode, Flatten]) -> tuple[Prepare, Encode, Flatten]:
    """Gigatoken in its fastest way: one buffer that it cuts at a separator itself."""
    import gigatoken as library

    _, encode, flatten = contestant
    return lambda texts: library.BytesSource("\n\n".join(texts).encode(), separator=b"\n\n"), encode, flatten


def fastokens(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    del threads
    import fastokens._native as library  # type: ignore[import-untyped]

    tokenizer = library.Tokenizer.from_file(str(model / "tokenizer.json"))
    return list, tokenizer.encode_batch_flat, lambda result: np.frombuffer(result[0], dtype=np.int32)


def kitoken(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    del threads
    import kitoken as library

    tokenizer = library.Kitoken.from_sentencepiece_file(str(model / "tokenizer.model"))
    return list, tokenizer.encode_all, join_lists


CONTESTANTS = {
    function.__name__: function
    for function in (
        ours,
        ours_arrow,
        sentencepiece,
        tokenizers,
        gigatoken,
        gigatoken_bytes,
        fastokens,
        kitoken,
    )
}


def read_documents(files: Sequence[str]) -> list[str]:
    """The paragraphs of the files."""
    texts = [Path(file).read_text(encoding="utf-8", errors="replace") for file in files]
    return [paragraph for text in texts for paragraph in text.split("\n\n") if paragraph]


def cut_strings(documents: list[str]) -> list[str]:
    """The same text in strings of about a megabyte."""
    strings: list[list[str]] = [[]]
    size = 0
    for document in documents:
        if size >= STRING_BYTES:
            strings.append([])
            size = 0
        strings[-1].append(document)
        size += len(document.encode())
    return ["\n".join(parts) for parts in strings]


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    documents = read_documents(settings["files"])
    documents *= settings["times"]
    texts = cut_strings(documents) if settings["texts"] == "strings" else documents
    num_bytes = sum(len(text.encode()) for text in texts)
    started = time.perf_counter()
    prepare, encode, flatten = CONTESTANTS[settings["name"]](Path(settings["model"]), settings["threads"])
    load_seconds = time.perf_counter() - started
    # Strings go in one at a time, as a caller with long texts would do it.
    batches = [prepare([text]) for text in texts] if settings["texts"] == "strings" else [prepare(texts)]
    touch_memory()
    with PeakMemory() as memory:
        started = time.perf_counter()
        results = [encode(batch) for batch in batches]
        seconds = time.perf_counter() - started
    ids = np.concatenate([flatten(result) for result in results])
    del results
    warm_seconds = None
    if settings["times"] == 1:
        started = time.perf_counter()
        again = [encode(batch) for batch in batches]
        warm_seconds = time.perf_counter() - started
        del again
    return {
        "bytes": num_bytes,
        "texts": len(texts),
        "tokens": len(ids),
        "seconds": seconds,
        "warm_seconds": warm_seconds,
        "load_seconds": load_seconds,
        "peak_bytes": memory.rise,
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "special": flatten(encode(prepare(SPECIAL_TEXTS))).tolist(),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except ImportError as error:
        report_missing(error)
