"""Shares of texts by their hashes: the same ones on every machine, whatever stands beside them."""

import hashlib

_SPAN = 1 << 64


def is_within(text: str, share: float, draw: int = 0) -> bool:
    """Whether a text is in the share of all texts that the hash picks; `draw`, 0 to 3, picks independently."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[8 * draw : 8 * draw + 8], "big") < share * _SPAN
