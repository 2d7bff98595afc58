"""Section 3.2 of the paper: from raw text to token shards."""

from vikhr_fast.corpus.read import Document, read_documents
from vikhr_fast.corpus.shard import TokenShards

__all__ = ["Document", "TokenShards", "read_documents"]
