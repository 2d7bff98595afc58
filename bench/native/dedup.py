"""Our deduplication beside every one that can be installed, on Russian paragraphs with planted near-duplicates.

    python bench/native/dedup.py [--out DIR] [--only ours,daft] [--repeats 3] [--allow-missing]

The text is made by tests/helpers/planted.py from ../shared/data. Writes dedup.json, dedup.md (the README's tables) and
dedup.svg. Exit code 1 where ours removes a text that is no near-duplicate or finds fewer than .99 of the planted ones,
or where a peer isn't installed; `--allow-missing` lets peers be missing.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
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

mpl.use("Agg")
from matplotlib import pyplot

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
import planted

HERE = Path(__file__).parent
MEGABYTES = 100  # of the comparison
GROWTH = (100_000, 300_000, 1_000_000)  # paragraphs, ours alone
GROWTH_MEGABYTES = 620
THRESHOLD = 0.8
PACKAGES = ("vikhr-fast", "daft", "rensa", "gaoya", "datasketch", "numpy")
TITLES = {
    "ours": "vikhr_fast",
    "daft": "daft + NumPy LSH",
    "rensa": "rensa",
    "gaoya": "gaoya",
    "datasketch": "datasketch",
}


class Measurement(Strict):
    """One contestant: the median of fresh processes on one core each."""

    contestant: str
    threads: int
    paragraphs: int
    num_bytes: int
    sign_seconds: float | None
    """Shingles and signatures alone."""
    job_seconds: float
    """From texts to matches."""
    all_job_seconds: list[float]
    peak_bytes: int
    """How far resident memory rose during the job, beyond the text."""
    removed: int
    recall: float | None
    """Of the planted edits whose exact similarity to their original is 0.8 or more: how many got a match like that."""
    precision: float | None
    """Of the removed texts: how many have that similarity to their match."""


class Results(Comparison):
    planted_pairs: int
    measurements: list[Measurement]


def text_file(megabytes: int) -> Path:
    """Planted paragraphs, one a line; made once."""
    file = BUILD / f"planted-{megabytes}.txt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        made = planted.planted(megabytes * 1_000_000)
        file.with_suffix(".partial").write_text("\n".join(made.texts) + "\n", encoding="utf-8")
        np.save(file.with_suffix(".npy"), np.array(made.origins))
        file.with_suffix(".partial").rename(file)
    return file


def folded_file(file: Path) -> Path:
    """The same paragraphs as their words in lower case with single spaces between them."""
    folded = file.with_suffix(".folded.txt")
    if not folded.exists():
        with file.open(encoding="utf-8") as lines:
            text = "".join(" ".join(planted.words(line)) + "\n" for line in lines)
        folded.with_suffix(".partial").write_text(text, encoding="utf-8")
        folded.with_suffix(".partial").rename(folded)
    return folded


class Truth:
    """Which texts are near-duplicates, by the plainest definition."""

    def __init__(self, file: Path) -> None:
        self._texts = [line.split() for line in folded_file(file).read_text(encoding="utf-8").split("\n")]
        origins = np.load(file.with_suffix(".npy"))
        self.edits = [
            i for i, origin in enumerate(origins.tolist()) if origin != i and self.similarity(origin, i) >= THRESHOLD
        ]

    def similarity(self, i: int, j: int) -> float:
        return planted.jaccard(planted.runs_of(self._texts[i]), planted.runs_of(self._texts[j]))

    def score(self, matches: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
        """Recall and precision."""
        removed = np.flatnonzero(matches >= 0).tolist()
        right = {i for i in removed if self.similarity(int(matches[i]), i) >= THRESHOLD}
        return len(right.intersection(self.edits)) / len(self.edits), len(right) / max(1, len(removed))


def run_one(name: str, file: Path, paragraphs: int, threads: int, *, signs: bool) -> dict[str, Any]:
    """One fresh process; `signs` also times the signatures alone."""
    settings = {
        "name": name,
        "file": str(file if name == "ours" else folded_file(file)),
        "paragraphs": paragraphs,
        "threads": threads,
        "signatures": signs,
        "out": str(matches_of(name)),
    }
    return run_contestant(HERE / "dedup_contestant.py", settings, cores=threads)


def matches_of(name: str) -> Path:
    """Where a contestant's last run left what each text matches."""
    return BUILD / f"matches-{name}.npy"


def summary(name: str, threads: int, runs: list[dict[str, Any]], truth: Truth | None) -> Measurement:
    """The middle one of the runs."""
    middle = statistics.median_low(run["job_seconds"] for run in runs)
    run = next(run for run in runs if run["job_seconds"] == middle)
    matches = np.load(matches_of(name))
    recall, precision = truth.score(matches) if truth else (None, None)
    print(f"{name}, {run['paragraphs']} paragraphs, {threads} threads: {middle:.2f} s", file=sys.stderr)
    return Measurement(
        contestant=name,
        threads=threads,
        paragraphs=run["paragraphs"],
        num_bytes=run["bytes"],
        sign_seconds=statistics.median_low(one["sign_seconds"] for one in runs) if truth else None,
        job_seconds=middle,
        all_job_seconds=[one["job_seconds"] for one in runs],
        peak_bytes=run["peak_bytes"],
        removed=int((matches >= 0).sum()),
        recall=recall,
        precision=precision,
    )


def compare(names: list[str], repeats: int) -> Results:
    """All contestants take turns, so that a machine's faster and slower minutes are shared alike."""
    machine = describe_machine(PACKAGES)
    file = text_file(MEGABYTES)
    truth = Truth(file)
    paragraphs = sum(1 for _ in file.open(encoding="utf-8"))
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(name, 1): [] for name in names}
    if "ours" in names:
        runs["ours", 2] = []
    missing: dict[str, Missing] = {}
    for _ in range(repeats):
        for (name, threads), own in runs.items():
            try:
                if name not in missing:
                    own.append(run_one(name, file, paragraphs, threads, signs=True))
            except ContestantError as error:
                missing[name] = Missing(contestant=name, reason=str(error))
    measurements = [summary(name, threads, own, truth) for (name, threads), own in runs.items() if name not in missing]
    if "ours" in names:
        large = text_file(GROWTH_MEGABYTES)
        for size in GROWTH:
            measurements.append(summary("ours", 1, [run_one("ours", large, size, 1, signs=False)], None))
    return Results(
        machine=machine, planted_pairs=len(truth.edits), measurements=measurements, missing=list(missing.values())
    )


def markdown(results: Results) -> str:
    """The README's tables."""
    machine = results.machine
    compared = [m for m in results.measurements if m.recall is not None]
    lines = [
        f"{machine.cpu}, {machine.cores} cores, Python {machine.versions['python']}, commit {machine.commit[:12]}.",
        f"{compared[0].num_bytes / 1e6:.0f} MB of Russian in {compared[0].paragraphs:,} paragraphs, "
        f"{results.planted_pairs:,} planted edits of Jaccard 0.8 or more; "
        f"median of {len(compared[0].all_job_seconds)}.",
        "",
        "| | version | threads | shingles + signatures, MB/s | whole job, s | memory beyond the text, MB "
        "| recall | precision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in compared:
        assert one.sign_seconds is not None
        package = "vikhr-fast" if one.contestant == "ours" else one.contestant
        lines.append(
            f"| {TITLES[one.contestant]} | {machine.versions[package]} | {one.threads} "
            f"| {one.num_bytes / one.sign_seconds / 1e6:.0f} | {one.job_seconds:.2f} | {one.peak_bytes / 1e6:.0f} "
            f"| {one.recall:.4f} | {one.precision:.4f} |"
        )
    lines += ["", "| paragraphs | MB | whole job, s | bytes of memory a paragraph |", "|---|---|---|---|"]
    for one in growth(results):
        lines.append(
            f"| {one.paragraphs:,} | {one.num_bytes / 1e6:.0f} | {one.job_seconds:.2f} "
            f"| {one.peak_bytes / one.paragraphs:.0f} |"
        )
    return "\n".join(lines) + "\n"


def growth(results: Results) -> list[Measurement]:
    return [m for m in results.measurements if m.recall is None]


def plot(results: Results, file: Path) -> None:
    """The whole job side by side, and the growth of time and memory."""
    figure, (jobs, growing) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    compared = [m for m in results.measurements if m.recall is not None and m.threads == 1]
    labels = [TITLES[m.contestant] for m in compared]
    jobs.barh(labels, [m.job_seconds for m in compared])
    jobs.invert_yaxis()
    jobs.set(xlabel=f"seconds for {MEGABYTES} MB, one thread", xscale="log")
    sizes = [m.paragraphs for m in growth(results)]
    growing.plot(sizes, [m.job_seconds for m in growth(results)], marker="o")
    growing.set(xlabel="paragraphs", ylabel="seconds (solid)", xlim=(0, None), ylim=(0, None))
    memory = growing.twinx()
    memory.plot(sizes, [m.peak_bytes / 1e6 for m in growth(results)], marker="o", linestyle="--", color="tab:orange")
    memory.set(ylabel="MB beyond the text (dashed)", ylim=(0, None))
    figure.suptitle(f"Near-duplicate removal, {results.machine.cpu}", parse_math=False)
    figure.savefig(file)
    pyplot.close(figure)


def main() -> int:
    options = arguments(__doc__)
    if not planted.paragraphs():
        print(f"no text in {DATA}; see its README", file=sys.stderr)
        return 1
    names = options.only.split(",") if options.only else list(TITLES)
    results = compare(names, options.repeats)
    plot(results, results.save("dedup", markdown(results), options.out) / "dedup.svg")
    ours = [m for m in results.measurements if m.contestant == "ours" and m.recall is not None]
    is_wrong = any(m.precision != 1 or (m.recall or 0) < 0.99 for m in ours)
    return int(is_wrong or (bool(results.missing) and not options.allow_missing))


if __name__ == "__main__":
    sys.exit(main())
