"""Tokenizers (section 3.1): training, encoding, export."""

from vikhr_fast.tokenizer.bpe import BpeEncoder
from vikhr_fast.tokenizer.json_encoder import JsonEncoder

__all__ = ["BpeEncoder", "JsonEncoder"]
