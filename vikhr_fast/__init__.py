"""Adapts an English Mistral model to Russian, or to any other language (arXiv 2405.13929)."""
