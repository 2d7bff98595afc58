"""Text and tokens on their way to training: reading, documents, token shards, packing."""
