"""Ranks: how they meet, watch each other, and share a model's weights."""
