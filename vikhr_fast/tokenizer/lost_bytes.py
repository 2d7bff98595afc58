"""What a byte-level tokenizer can't spell: SmolLM2's has no token for eight bytes of UTF-8."""

from collections import Counter
from collections.abc import Iterable

from vikhr_fast.io.console import logger
from vikhr_fast.tokenizer.load import Encoder


class LostBytes:
    """Counts the bytes of texts that a tokenizer has no token for, so that they are lost."""

    def __init__(self, encoder: Encoder) -> None:
        self._missing, self._counts = encoder.missing_bytes, Counter[int]()

    def count(self, texts: Iterable[str]) -> None:
        """Adds those of some texts."""
        for text in texts if self._missing else ():
            content = text.encode()
            self._counts.update({byte: content.count(byte) for byte in self._missing})

    def warn(self) -> None:
        """Says how many there were, if any."""
        if total := self._counts.total():
            named = ", ".join(f"{byte:#04x} ({count:,})" for byte, count in self._counts.items() if count)
            logger.warning(f"{total:,} bytes of the text have no token in this tokenizer and are lost: {named}")
