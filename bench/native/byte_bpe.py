"""Our byte-level BPE encoder beside every other that can be installed, on text that each sees for the first time.

    python bench/native/byte_bpe.py [--out DIR] [--only ours,gigatoken] [--repeats 3] [--allow-missing]

The tokenizer has Llama 3's pre-tokenizer and 32,000 tokens, trained on the Russian and English of ../shared/data; each
language is encoded apart. Writes byte-bpe.json and byte-bpe.md. Exit code 1 where ids differ from those of `tokenizers`
or a peer isn't installed; `--allow-missing` lets peers be missing.
"""

import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

from harness import (
    BUILD,
    DATA,
    ROOT,
    Comparison,
    ContestantError,
    Missing,
    Strict,
    arguments,
    describe_machine,
    run_contestant,
)

sys.path.append(str(ROOT / "tests" / "helpers"))
from byte_level import make_tokenizer

HERE = Path(__file__).parent
KIND = "llama-bpe"
LANGUAGES = {"en": "English", "ru": "Russian"}
THREADS = (1, 2)
VOCAB_SIZE = 32_000
PACKAGES = ("vikhr-fast", "tokenizers", "tiktoken", "gigatoken", "fastokens")
TITLES = {
    "ours": "vikhr_fast, list of str",
    "ours_arrow": "vikhr_fast, Arrow array",
    "gigatoken": "gigatoken, list of str",
    "gigatoken_bytes": "gigatoken, bytes + separator",
    "fastokens": "fastokens",
    "tiktoken": "tiktoken",
    "tokenizers": "HF tokenizers",
}


class Pass(Strict):
    """Encoding the text once: the medians of fresh processes."""

    seconds: float
    cpu_seconds: float
    """Of all threads."""


class Measurement(Strict):
    """One contestant on one text."""

    contestant: str
    language: str
    threads: int
    num_bytes: int
    tokens: int
    first: Pass
    second: Pass
    """Over the same text again."""
    all_seconds: list[float]
    """Of each process's first pass."""
    is_identical: bool
    """The ids are those of `tokenizers`."""


class Results(Comparison):
    measurements: list[Measurement]


def text_files(language: str) -> list[Path]:
    return sorted((DATA / language).glob("*.txt"))


def model() -> Path:
    """The tokenizer of the comparison, trained once."""
    directory = BUILD / f"byte-level-{KIND}-{VOCAB_SIZE}"
    if not directory.exists():
        files = [file for language in LANGUAGES for file in text_files(language)]
        lines = (line for file in files for line in file.open(encoding="utf-8", errors="replace", newline="\n"))
        make_tokenizer(directory, lines, VOCAB_SIZE, KIND)
    return directory


def run_one(name: str, language: str, threads: int) -> dict[str, Any]:
    files = [str(file) for file in text_files(language)]
    settings = {"name": name, "model": str(model()), "files": files, "threads": threads}
    return run_contestant(HERE / "byte_bpe_contestant.py", settings, cores=threads)


def measure(names: list[str], repeats: int) -> tuple[list[Measurement], list[Missing]]:
    """Every contestant in every setting. All take turns, so that a machine's faster and slower minutes are shared."""
    measurements: list[Measurement] = []
    missing: dict[str, Missing] = {}
    truth = {language: run_one("tokenizers", language, 1)["sha256"] for language in LANGUAGES}
    for language, threads in product(LANGUAGES, THREADS):
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _, name in product(range(repeats), names):
            if name in missing:
                continue
            try:
                runs[name].append(run_one(name, language, threads))
            except ContestantError as error:
                missing[name] = Missing(contestant=name, reason=str(error))
        for name, own in runs.items():
            if name not in missing:
                measurements.append(summary(name, language, threads, own, truth[language]))
                print(f"{name}, {language}, {threads} threads: {rates(measurements[-1])} MB/s", file=sys.stderr)
    return measurements, list(missing.values())


def summary(name: str, language: str, threads: int, runs: list[dict[str, Any]], truth: str) -> Measurement:
    """The medians of the runs."""
    first, second = (
        Pass(**{key: statistics.median(run["passes"][number][key] for run in runs) for key in Pass.model_fields})
        for number in range(2)
    )
    return Measurement(
        contestant=name,
        language=language,
        threads=threads,
        num_bytes=runs[0]["bytes"],
        tokens=runs[0]["tokens"],
        first=first,
        second=second,
        all_seconds=[run["passes"][0]["seconds"] for run in runs],
        is_identical=all(run["sha256"] == truth for run in runs),
    )


def rates(measurement: Measurement) -> str:
    """MB/s of both passes: by the CPU time of one thread, by the clock where there are more."""
    times = [
        one.cpu_seconds if measurement.threads == 1 else one.seconds for one in (measurement.first, measurement.second)
    ]
    return " / ".join(f"{measurement.num_bytes / seconds / 1e6:.1f}" for seconds in times)


def markdown(results: Results) -> str:
    """The table of the docs."""
    machine = results.machine
    columns = list(product(LANGUAGES, THREADS))
    heads = [f"{LANGUAGES[language]}, {threads} thread{'s' * (threads > 1)}" for language, threads in columns]
    found = {(m.contestant, m.language, m.threads): m for m in results.measurements}
    lines = [
        f"{machine.cpu}, {machine.cores} cores, Python {machine.versions['python']}, commit {machine.commit[:12]}.",
        "MB/s of the first and of the second pass over the same text in a fresh process: by CPU time on one thread, by "
        "the clock on two.",
        "",
        f"| tokenizer | version | {' | '.join(heads)} | `tokenizers`' ids |",
        "|---" * (3 + len(heads)) + "|",
    ]
    for name, title in TITLES.items():
        own = [found.get((name, *column)) for column in columns]
        measured = [m for m in own if m is not None]
        if not measured:
            continue
        cells = [title, machine.versions.get(package_of(name), ""), *(rates(m) if m else "" for m in own)]
        cells.append("yes" if all(m.is_identical for m in measured) else "no")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def package_of(name: str) -> str:
    return {"ours": "vikhr-fast", "ours_arrow": "vikhr-fast", "gigatoken_bytes": "gigatoken"}.get(name, name)


def main() -> int:
    options = arguments(__doc__)
    if not all(map(text_files, LANGUAGES)):
        print(f"no text in {DATA}; see its README", file=sys.stderr)
        return 1
    machine = describe_machine(PACKAGES)
    names = options.only.split(",") if options.only else list(TITLES)
    measurements, missing = measure(names, options.repeats)
    results = Results(machine=machine, measurements=measurements, missing=missing)
    results.save("byte-bpe", markdown(results), options.out)
    wrong = [m.contestant for m in measurements if not m.is_identical and m.contestant.startswith("ours")]
    return int(bool(wrong or (missing and not options.allow_missing)))


if __name__ == "__main__":
    sys.exit(main())
