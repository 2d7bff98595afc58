"""Tokenizers (section 3.1): training, encoding, export."""

from vikhr_fast.tokenizer.bpe import BpeEncoder

__all__ = ["BpeEncoder"]
