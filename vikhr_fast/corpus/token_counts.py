"""Tokens of the documents before and after the stages, which the shards alone don't tell (table 2 of the paper)."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from vikhr_fast.corpus.layout import TokenCounts, read_token_counts
from vikhr_fast.corpus.shard import encoder_for_shards
from vikhr_fast.data.documents import Documents
from vikhr_fast.io.files import write_json
from vikhr_fast.io.progress import progress_bar
from vikhr_fast.tokenizer.load import Encoder


def write_token_counts(path: Path, stages: dict[str, Documents], tokenizer: Path, threads: int) -> None:
    """Counts the tokens of each stage's documents, unless the file has them.

    Args:
        path: JSON: stage -> {"of": the checksums of documents and tokenizer, "tokens": source -> how many}.
        stages: documents by name.
        tokenizer: see `encoder_for_shards`.
        threads: 0 is one a core.
    """
    encoder = encoder_for_shards(tokenizer)
    earlier = read_token_counts(path)
    counts = {}
    for name, documents in stages.items():
        what, known = [documents.sha256, encoder.sha256], earlier.get(name)
        if known is None or known.of != what:
            known = TokenCounts(what, count_tokens(documents, encoder, threads))
        counts[name] = known
    if counts != earlier:
        write_json(path, {name: asdict(own) for name, own in counts.items()})


def count_tokens(documents: Documents, encoder: Encoder, threads: int) -> dict[str, int]:
    """Tokens by source, each document with BOS and EOS, as in the shards."""
    tokens = dict.fromkeys(documents.counts, 0)
    with progress_bar("tokens", sum(counts.get("documents", 0) for counts in documents.counts.values())) as advance:
        for table in documents.tables():
            _, offsets = encoder.encode_batch(table["text"].combine_chunks(), threads=threads)
            lengths = pa.table({"source": table["source"], "tokens": np.diff(offsets) + 2})
            for row in lengths.group_by("source").aggregate([("tokens", "sum")]).to_pylist():
                tokens[row["source"]] += row["tokens_sum"]
            advance(table.num_rows)
    return tokens
