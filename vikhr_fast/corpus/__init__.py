"""Section 3.2 of the paper: from raw text to token shards."""

from vikhr_fast.corpus.dedup import DedupIndex, Deduplicated, DedupSettings, deduplicate
from vikhr_fast.corpus.minhash import MinHasher
from vikhr_fast.data.read import Document, read_documents
from vikhr_fast.data.token_shards import TokenShards

__all__ = [
    "DedupIndex",
    "DedupSettings",
    "Deduplicated",
    "Document",
    "MinHasher",
    "TokenShards",
    "deduplicate",
    "read_documents",
]
