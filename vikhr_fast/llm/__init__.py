"""Questions to an OpenAI-compatible endpoint."""
