"""Our BPE encoder beside every tokenizer that can be installed, on Russian text that each sees for the first time.

    python bench/native/bpe.py [--out DIR] [--only ours,gigatoken] [--repeats 3] [--allow-missing]

The text is all Russian text of ../shared/data, the model 40,000 pieces trained on it. Writes bpe.json, bpe.md (the
README's table) and bpe.svg. Exit code 1 where ids differ from SentencePiece's or a peer isn't installed;
`--allow-missing` lets peers be missing.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from harness import (
    BUILD,
    DATA,
    Comparison,
    ContestantError,
    Missing,
    Strict,
    arguments,
    describe_machine,
    run_contestant,
)

mpl.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
VOCAB_SIZE = 40_000
TIMES = (4, 16)  # how often the text comes over and over, for the growth
RELEASE_CANDIDATE = BUILD / "tokenizers-rc"  # apart from the release that transformers needs
PACKAGES = ("vikhr-fast", "sentencepiece", "tokenizers", "gigatoken", "fastokens", "kitoken")
TITLES = {
    "ours": "vikhr_fast, list of str",
    "ours_arrow": "vikhr_fast, Arrow array",
    "gigatoken": "gigatoken, list of str",
    "gigatoken_bytes": "gigatoken, bytes + separator",
    "fastokens": "fastokens",
    "kitoken": "kitoken",
    "sentencepiece": "sentencepiece",
    "tokenizers": "HF tokenizers",
    "tokenizers_rc": "HF tokenizers 1.0 rc",
}
GROWING = ("ours", "gigatoken_bytes", "sentencepiece")

Kind = Literal["documents", "strings"]


class Measurement(Strict):
    """One contestant on one kind of texts: the median of fresh processes."""

    contestant: str
    texts: Kind
    threads: int
    times: int
    """How often the whole text came, one after another: above 1, the words are known after the first time."""
    num_bytes: int
    tokens: int
    seconds: float
    """Of the first pass; `all_seconds` of each process."""
    all_seconds: list[float]
    warm_seconds: float | None
    """Of the second pass over the same text; not measured for text that came several times."""
    load_seconds: float
    beyond_output_bytes: int
    """How far resident memory rose, less the ids at 4 bytes each."""
    is_identical: bool
    """The ids are SentencePiece's."""
    is_identical_on_special_texts: bool
    """So are those of texts like `<s>`, which are ordinary text to SentencePiece."""


class Results(Comparison):
    floor_seconds: float
    """Reading, hashing and copying out each word of the documents once, on one thread."""
    measurements: list[Measurement]


def model() -> Path:
    """The tokenizer of the comparison, trained once."""
    from vikhr_fast.tokenizer.train import TrainTokenizer, train_tokenizer

    directory = BUILD / f"tokenizer-{VOCAB_SIZE}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer(TrainTokenizer(input=tuple(text_files()), output=directory, vocab_size=VOCAB_SIZE))
    return directory


def text_files() -> list[Path]:
    return sorted((DATA / "ru").glob("*.txt"))


def floor() -> float:
    """Seconds of bench/native/floor.cpp, the best of some runs."""
    program = BUILD / "floor"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-O3", "-std=c++17", str(HERE / "floor.cpp"), "-o", str(program)], check=True)
    printed = subprocess.run([program, *text_files()], check=True, capture_output=True, text=True).stdout
    return float(printed)


def run_one(name: str, texts: Kind, threads: int, times: int) -> dict[str, Any]:
    settings = {
        "name": name.removesuffix("_rc"),
        "model": str(model()),
        "files": [str(file) for file in text_files()],
        "texts": texts,
        "threads": threads,
        "times": times,
    }
    path = RELEASE_CANDIDATE if name.endswith("_rc") else None
    if path is not None and not path.is_dir():
        raise ContestantError(f"{path} is missing: `make bench-native` fills it", is_missing=True)
    return run_contestant(HERE / "bpe_contestant.py", settings, cores=threads, path=path)


def measure(names: list[str], repeats: int) -> tuple[list[Measurement], list[Missing]]:
    """Every contestant in every setting; SentencePiece is always there, for its ids.

    Runs with one and with two threads take turns, so that a machine's faster and slower minutes are shared alike.
    """
    settings: list[tuple[Kind, tuple[int, ...], int]] = [("documents", (1, 2), 1), ("strings", (1,), 1)]
    settings += [("documents", (1,), times) for times in TIMES]
    measurements: list[Measurement] = []
    missing: dict[str, Missing] = {}
    for texts, counts, times in settings:
        truth = run_one("sentencepiece", texts, 1, times)
        for name in names:
            if (times > 1 and name not in GROWING) or name in missing:
                continue
            runs: dict[int, list[dict[str, Any]]] = {threads: [] for threads in counts}
            try:
                for _ in range(repeats if times == 1 else 1):
                    for threads, own in runs.items():
                        own.append(run_one(name, texts, threads, times))
            except ContestantError as error:
                missing[name] = Missing(contestant=name, reason=str(error))
                continue
            for threads, own in runs.items():
                measurements.append(summary(name, texts, threads, times, own, truth))
                speed = f"{rate(measurements[-1]):.1f} MB/s"
                print(f"{name}, {texts}, {threads} threads, {times} times: {speed}", file=sys.stderr)
    return measurements, list(missing.values())


def summary(
    name: str, texts: Kind, threads: int, times: int, runs: list[dict[str, Any]], truth: dict[str, Any]
) -> Measurement:
    """The middle one of the runs, beside SentencePiece's ids."""
    middle = statistics.median_low(run["seconds"] for run in runs)
    run = next(run for run in runs if run["seconds"] == middle)
    return Measurement(
        contestant=name,
        texts=texts,
        threads=threads,
        times=times,
        num_bytes=run["bytes"],
        tokens=run["tokens"],
        seconds=middle,
        all_seconds=[run["seconds"] for run in runs],
        warm_seconds=run["warm_seconds"],
        load_seconds=run["load_seconds"],
        beyond_output_bytes=max(0, run["peak_bytes"] - 4 * run["tokens"]),
        is_identical=run["sha256"] == truth["sha256"],
        is_identical_on_special_texts=run["special"] == truth["special"],
    )


def rate(measurement: Measurement) -> float:
    """MB/s of the first pass."""
    return measurement.num_bytes / measurement.seconds / 1e6


def markdown(results: Results) -> str:
    """The README's table."""
    found = {(m.contestant, m.texts, m.threads): m for m in results.measurements if m.times == 1}
    example = found[results.measurements[0].contestant, "documents", 1]
    machine = results.machine
    lines = [
        f"{machine.cpu}, {machine.cores} cores, Python {machine.versions['python']}, commit {machine.commit[:12]}.",
        f"{example.num_bytes / 1e6:.1f} MB of Russian in paragraphs, {example.tokens:,} tokens; "
        f"first pass of a fresh process, median of {len(example.all_seconds)}. "
        f"Floor (reading, hashing and copying out each word once): {floor_rate(results):.0f} MB/s.",
        "",
        "| tokenizer | version | MB/s | million tokens/s | 2 threads, MB/s | 1 MB strings, MB/s | second pass, MB/s "
        "| memory, MB | SentencePiece's ids | also of `<s>` |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        one = found.get((name, "documents", 1))
        if one is None:
            continue
        cells = [
            title,
            machine.versions.get(package_of(name), ""),
            f"{rate(one):.1f}",
            f"{one.tokens / one.seconds / 1e6:.2f}",
        ]
        others: list[tuple[Kind, int]] = [("documents", 2), ("strings", 1)]
        for kind, threads in others:
            other = found.get((name, kind, threads))
            cells.append(f"{rate(other):.1f}" if other else "")
        cells += [
            f"{one.num_bytes / one.warm_seconds / 1e6:.1f}" if one.warm_seconds else "",
            f"{one.beyond_output_bytes / 1e6:.0f}",
            "yes" if one.is_identical else "no",
            "yes" if one.is_identical_on_special_texts else "no",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def floor_rate(results: Results) -> float:
    """MB/s of the floor."""
    return sum(file.stat().st_size for file in text_files()) / results.floor_seconds / 1e6


def package_of(name: str) -> str:
    return {"ours": "vikhr-fast", "ours_arrow": "vikhr-fast", "gigatoken_bytes": "gigatoken"}.get(name, name)


def plot(results: Results, file: Path) -> None:
    """Rates side by side, and the growth of time and memory with the text."""
    figure, (rates, growth) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for row, (kind, threads, label) in enumerate(
        [("documents", 1, "paragraphs"), ("documents", 2, "paragraphs, 2 threads"), ("strings", 1, "1 MB strings")]
    ):
        chosen = [m for m in results.measurements if (m.texts, m.threads, m.times) == (kind, threads, 1)]
        places = [list(TITLES).index(m.contestant) + 0.27 * (row - 1) for m in chosen]
        rates.barh(places, [rate(m) for m in chosen], height=0.25, label=label)
    rates.axvline(floor_rate(results), color="black", linestyle=":", label="floor, 1 thread")
    rates.set_yticks(range(len(TITLES)), list(TITLES.values()))
    rates.invert_yaxis()
    rates.set(xlabel="MB/s, first pass", xscale="log")
    rates.legend(fontsize="small")
    memory = growth.twinx()
    for name in GROWING:
        chosen = [m for m in results.measurements if (m.contestant, m.texts, m.threads) == (name, "documents", 1)]
        chosen.sort(key=lambda m: m.num_bytes)
        sizes = [m.num_bytes / 1e6 for m in chosen]
        line = growth.plot(sizes, [m.seconds for m in chosen], marker="o", label=TITLES[name])[0]
        memory.plot(sizes, [m.beyond_output_bytes / 1e6 for m in chosen], linestyle="--", color=line.get_color())
    growth.set(xlabel="MB of text: once, 4 times, 16 times", ylabel="seconds (solid)", xscale="log", yscale="log")
    memory.set(ylabel="MB of memory beyond input and output (dashed)", ylim=(0, None))
    growth.legend(fontsize="small")
    figure.suptitle(f"BPE encoding, {results.machine.cpu}", parse_math=False)
    figure.savefig(file)
    pyplot.close(figure)


def main() -> int:
    options = arguments(__doc__)
    if not text_files():
        print(f"no text in {DATA}; see its README", file=sys.stderr)
        return 1
    machine = describe_machine(PACKAGES)
    candidate = next(RELEASE_CANDIDATE.glob("tokenizers-*.dist-info"), None)
    machine.versions["tokenizers_rc"] = candidate.stem.removeprefix("tokenizers-") if candidate else "missing"
    names = options.only.split(",") if options.only else list(TITLES)
    model()
    floor_seconds = floor()
    measurements, missing = measure(names, options.repeats)
    results = Results(machine=machine, floor_seconds=floor_seconds, measurements=measurements, missing=missing)
    plot(results, results.save("bpe", markdown(results), options.out) / "bpe.svg")
    wrong = [m.contestant for m in measurements if not m.is_identical and m.contestant.startswith("ours")]
    return int(bool(wrong or (missing and not options.allow_missing)))


if __name__ == "__main__":
    sys.exit(main())
