"""Where a demo keeps what."""

from pathlib import Path


class DemoPaths:
    """Where each stage of a demo lies."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.text = output / "text"
        self.instructions = output / "instructions"
        self.results = output / "results.json"
        self.report = output / "report.html"

    def tokenizer(self, language: str) -> Path:
        """The base's tokenizer (English), the new one (Russian), or the base's extended."""
        return self.output / f"{language}-tokenizer"

    def shards(self, tokenizer: str, language: str, part: str) -> Path:
        """The text of a language in the pieces of a tokenizer."""
        return self.output / f"{tokenizer}-shards" / f"{language}-{part}"

    def run(self, seed: int, name: str) -> Path:
        """A stage of one seed: start (random weights), base, adapted or extended, cpt, cpt-kl, instruct ..."""
        return self.output / f"seed-{seed}" / name

    def model(self, seed: int, name: str) -> Path:
        """The Hugging Face directory that a stage of one seed leaves."""
        directory = self.run(seed, name)
        return directory if name in ("start", "adapted", "extended") else directory / "model"
