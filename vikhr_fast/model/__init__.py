"""Mistral by hand: its shape, its forward, its weights on disk."""

from vikhr_fast.model.config import ModelConfig
from vikhr_fast.model.mistral import Mistral

__all__ = ["Mistral", "ModelConfig"]
