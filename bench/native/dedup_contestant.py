"""Looks for near-duplicates with one library, and says how long it took and what it found: a JSON object.

    python bench/native/dedup_contestant.py '{"name": "ours", "file": FILE, "paragraphs": 100000, "threads": 1, ...}'

All use the same shingles (runs of five words), 120 permutations and 20 bands. The peers don't fold case or
punctuation: their file has the words with single spaces between them; ours has the text.
Each text's match is the first one that the library found before it; `out` gets its number, -1 where there is none.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import PeakMemory, report_missing, touch_memory

NUM_PERM, BANDS, WORDS, THRESHOLD = 120, 20, 5, 0.8
ROWS = NUM_PERM // BANDS

Matches = npt.NDArray[np.int64]
Stage = Callable[[Any], Any]  # texts -> signatures, of any form
Job = Callable[[Any], Matches]
Prepare = Callable[[list[str]], Any]


def word_runs(text: str) -> list[str]:
    found = text.split(" ")
    return [" ".join(found[i : i + WORDS]) for i in range(max(1, len(found) - WORDS + 1))]


def ours(threads: int) -> tuple[Prepare, Stage, Job]:
    import pyarrow as pa

    from vikhr_fast.corpus import MinHasher, deduplicate

    def job(texts: Any) -> Matches:
        result = deduplicate(texts, THRESHOLD, threads=threads)
        return np.where(result.keep, -1, result.clusters)

    hasher = MinHasher(NUM_PERM, BANDS)
    return (
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: hasher.signatures(texts, threads),
        job,
    )


def daft(threads: int) -> tuple[Prepare, Stage, Job]:
    del threads  # the harness pins the process
    import daft as library

    def sign(texts: Any) -> npt.NDArray[np.uint32]:
        column = library.col("text").minhash(num_hashes=NUM_PERM, ngram_size=WORDS, seed=1, hash_function="xxhash3_64")
        table = texts.select(column.alias("signature")).to_arrow()
        flat = table.column("signature").combine_chunks().flatten()
        return np.asarray(flat.to_numpy()).reshape(-1, NUM_PERM)

    def job(texts: Any) -> Matches:
        # Daft has no LSH of its own: bands as bytes, the first text of a bucket is the match of the others.
        signatures = sign(texts)
        first = np.full(len(signatures), len(signatures))
        for band in range(BANDS):
            rows = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS])
            keys = rows.view(np.dtype((np.void, rows.itemsize * ROWS))).ravel()
            _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
            first = np.minimum(first, firsts[inverse])
        return np.where(first < np.arange(len(first)), first, -1)

    return lambda texts: library.from_pydict({"text": texts}).collect(), sign, job


def rensa(threads: int) -> tuple[Prepare, Stage, Job]:
    del threads
    import rensa as library

    def sign(texts: Any) -> Any:
        return library.RMinHash.from_token_sets((word_runs(text) for text in texts), NUM_PERM, 1)

    def job(texts: Any) -> Matches:
        index = library.RMinHashLSH(THRESHOLD, NUM_PERM, BANDS)
        return keep_first(sign(texts), index.query, lambda i, signature: index.insert(i, signature))

    return list, sign, job


def gaoya(threads: int) -> tuple[Prepare, Stage, Job]:
    del threads
    from gaoya.minhash import MinHashStringIndex

    def make() -> Any:
        shape = {"num_bands": BANDS, "band_size": ROWS}
        return MinHashStringIndex(32, THRESHOLD, **shape, analyzer="word", ngram_range=(WORDS, WORDS))

    def sign(texts: Any) -> None:
        # It does not give signatures away: inserting into an index is the nearest thing.
        make().par_bulk_insert_docs(list(range(len(texts))), texts)

    def job(texts: Any) -> Matches:
        index = make()
        index.par_bulk_insert_docs(list(range(len(texts))), texts)
        found = [min(hits) for hits in index.par_bulk_query(texts)]
        return np.array([first if first < i else -1 for i, first in enumerate(found)])

    return list, sign, job


def datasketch(threads: int) -> tuple[Prepare, Stage, Job]:
    del threads
    from datasketch import MinHash, MinHashLSH

    def sign(texts: Any) -> Any:
        tokens = ([run.encode() for run in word_runs(text)] for text in texts)
        return MinHash.generator(tokens, num_perm=NUM_PERM, seed=1)

    def job(texts: Any) -> Matches:
        index = MinHashLSH(threshold=THRESHOLD, num_perm=NUM_PERM, params=(BANDS, ROWS))
        return keep_first(sign(texts), index.query, lambda i, signature: index.insert(i, signature))

    return list, lambda texts: list(sign(texts)), job


def keep_first(signatures: Any, query: Callable[[Any], Any], insert: Callable[[int, Any], Any]) -> Matches:
    """The loop that users write: a text with a match is removed, another goes into the index."""
    matches = []
    for i, signature in enumerate(signatures):
        hits = query(signature)
        matches.append(min(hits) if hits else -1)
        if not hits:
            insert(i, signature)
    return np.array(matches)


CONTESTANTS = {function.__name__: function for function in (ours, daft, rensa, gaoya, datasketch)}


def main() -> None:
    settings = json.loads(sys.argv[1])
    with Path(settings["file"]).open(encoding="utf-8") as file:
        texts = [line.rstrip("\n") for line in islice(file, settings["paragraphs"])]
    num_bytes = sum(len(text.encode()) for text in texts)
    try:
        prepare, sign, job = CONTESTANTS[settings["name"]](settings["threads"])
    except ImportError as error:
        report_missing(error)
    prepared = prepare(texts)
    touch_memory()
    with PeakMemory() as memory:
        start = time.perf_counter()
        matches = job(prepared)
        job_seconds = time.perf_counter() - start
    sign_seconds = None
    if settings["signatures"]:
        start = time.perf_counter()
        signatures = sign(prepared)
        sign_seconds = time.perf_counter() - start
        del signatures
    np.save(settings["out"], matches)
    print(
        json.dumps(
            {
                "paragraphs": len(texts),
                "bytes": num_bytes,
                "sign_seconds": sign_seconds,
                "job_seconds": job_seconds,
                "peak_bytes": memory.rise,
            }
        )
    )


if __name__ == "__main__":
    main()
