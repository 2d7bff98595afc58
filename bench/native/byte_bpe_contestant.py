"""Encodes text with one byte-level tokenizer, twice, and says how long it took: a JSON object.

    python bench/native/byte_bpe_contestant.py '{"name": "ours", "model": DIR, "files": [...], "threads": 1}'

Every library is used in the fastest way that it offers for a list of texts, and sees the text for the first time.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from bpe_contestant import (
    Encode,
    Flatten,
    Prepare,
    fastokens,
    in_arrow,
    in_separated_bytes,
    join_lists,
    read_documents,
    tokenizers,
    with_gigatoken,
)
from harness import report_missing, touch_memory


def ours(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    from vikhr_fast.tokenizer import JsonEncoder

    encoder = JsonEncoder.from_file(model / "tokenizer.json")
    return list, lambda texts: encoder.encode_batch(texts, threads), lambda result: result[0]


def ours_arrow(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    return in_arrow(ours(model, threads))


def gigatoken(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    import gigatoken as library

    return with_gigatoken(library.Tokenizer.from_json((model / "tokenizer.json").read_bytes()), threads)


def gigatoken_bytes(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    return in_separated_bytes(gigatoken(model, threads))


def tiktoken(model: Path, threads: int) -> tuple[Prepare, Encode, Flatten]:
    import tiktoken as library

    from vikhr_fast.tokenizer.byte_level import token_bytes

    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = {token_bytes(token): index for token, index in content["model"]["vocab"].items()}
    encoding = library.Encoding(
        "bench",
        pat_str=content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
        mergeable_ranks={token: index for token, index in tokens.items() if token is not None},
        special_tokens={},
    )
    return list, lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads), join_lists


CONTESTANTS = {f.__name__: f for f in (ours, ours_arrow, gigatoken, gigatoken_bytes, fastokens, tiktoken, tokenizers)}


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    texts = read_documents(settings["files"])
    prepare, encode, flatten = CONTESTANTS[settings["name"]](Path(settings["model"]), settings["threads"])
    prepared = prepare(texts)
    touch_memory()
    passes = []
    for _ in range(2):
        started, cpu_started = time.perf_counter(), time.process_time()
        result = encode(prepared)
        passes.append({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started})
    ids = flatten(result)
    return {
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": len(ids),
        "passes": passes,
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except ImportError as error:
        report_missing(error)
