"""Where `corpus build` puts what each stage makes, and its own notes beside that."""

from pathlib import Path
from typing import Any

from vikhr_fast.io.files import read_json

COLLECTED = "1-collect"
DEDUPLICATED = "2-dedup"
SCRUBBED = "3-scrub"
DECONTAMINATED = "4-decontaminate"
ANNOTATED = "5-annotations"
CLASSIFIER = "6-classifier"
FILTERED = "7-filter"
SHARDS = "8-shards"

DOCUMENT_STAGES = (COLLECTED, DEDUPLICATED, SCRUBBED, DECONTAMINATED, FILTERED)
"""Those that write documents."""

TIMES = "times.json"
"""Seconds of each stage's last, uninterrupted try."""
TOKENS = "tokens.json"
"""Tokens by source in the first and the last of the documents; see `token_counts`."""
REPORT = "report.html"


def read_notes(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file, InputError where it is damaged."""
    return read_json(path, "remove it") if path.exists() else {}
