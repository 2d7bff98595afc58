"""Time, memory and disk of `corpus dedup` on synthetic short paragraphs: python bench/corpus_dedup.py OUT [SCRATCH].

Documents of ten paragraphs of 12 to 20 words; a tenth of the paragraphs repeat an earlier one exactly, a tenth with one
word changed. Each size runs in a process of its own, whose peak memory the kernel reports.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vikhr_fast.data.documents import Documents, count_documents, part_name, write_manifest, write_part
from vikhr_fast.io.html import Line, Section, Table, line_plot, write_report
from vikhr_fast.io.run_directory import environment

SIZES = (100_000, 1_000_000, 10_000_000)
PART_PARAGRAPHS = 250_000
MEMORY = 2.5  # GiB, of the index
THREADS = 2
_RUN = """
import resource, sys
from pathlib import Path
from vikhr_fast.corpus.dedup_stage import Dedup, dedup
from vikhr_fast.corpus.settings import Machine
dedup(Dedup(Path(sys.argv[1]), Path(sys.argv[2]), machine=Machine(threads=int(sys.argv[3]), memory=float(sys.argv[4]))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make_documents(directory: Path, paragraphs: int) -> None:
    chance = np.random.default_rng(paragraphs)
    letters = np.array(list("абвгдежзиклмнопрстуфхцчшыэюя"))
    words = pa.array(["".join(chance.choice(letters, chance.integers(3, 9))) for _ in range(50_000)])
    directory.mkdir(parents=True)
    counts: dict[str, dict[str, int]] = {"synthetic": {"documents": 0, "bytes": 0}}
    for number, start in enumerate(range(0, paragraphs, PART_PARAGRAPHS)):
        count = min(PART_PARAGRAPHS, paragraphs - start)
        lengths = chance.integers(12, 21, count)
        ids = chance.integers(0, len(words), (count, 20))
        kind = chance.random(count)
        for row in np.flatnonzero(kind < 0.2).tolist():
            if row:
                source = int(chance.integers(0, row))
                ids[row], lengths[row] = ids[source], lengths[source]
                if kind[row] < 0.1:
                    ids[row, -1 if lengths[row] == 20 else 0] = chance.integers(0, len(words))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        flat = ids[np.arange(20) < lengths[:, None]]
        texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), words.take(pa.array(flat))), " ")
        groups = pa.array(np.arange(0, count + 1, 10, dtype=np.int32))
        documents = pc.binary_join(pa.ListArray.from_arrays(groups, texts), "\n\n").cast(pa.large_string())
        table = pa.table(
            {
                "id": [f"synthetic/{start // 10 + row}" for row in range(len(documents))],
                "text": documents,
                "source": ["synthetic"] * len(documents),
                "meta": ["{}"] * len(documents),
            }
        )
        own = count_documents(table)
        for key, value in own["synthetic"].items():
            counts["synthetic"][key] += value
        write_part(directory / part_name(number), table, {"counts": own})
    write_manifest(directory, "collect", {}, counts)


def size_of(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def measure(scratch: Path, paragraphs: int) -> dict[str, float]:
    source, output = scratch / "in", scratch / "out"
    make_documents(source, paragraphs)
    disk = [0]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            disk[0] = max(disk[0], size_of(output.with_name("out.partial")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    command = [sys.executable, "-c", _RUN, str(source), str(output), str(THREADS), str(MEMORY)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    seconds = time.monotonic() - start
    is_over.set()
    watcher.join()
    total = Documents.open(output).total
    result = {
        "paragraphs": paragraphs,
        "text_bytes": Documents.open(source).total["bytes"],
        "removed_paragraphs": total["removed_paragraphs"],
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak,
        "disk_bytes": max(disk[0], size_of(output)),
    }
    shutil.rmtree(source)
    shutil.rmtree(output)
    return result


def main() -> None:
    out = Path(sys.argv[1])
    places = [Path(place) for place in sys.argv[1:]]
    for place in places:  # now, not after minutes
        place.mkdir(parents=True, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory(dir=places[1] if len(places) > 1 else None) as scratch:
        for paragraphs in SIZES:
            results.append(measure(Path(scratch), paragraphs))
            print(json.dumps(results[-1]), flush=True)
    write(out, {"memory_gib": MEMORY, "threads": THREADS, "results": results, "made_with": environment(None)})


def write(out: Path, record: dict[str, Any]) -> None:
    """The figures and their plot."""
    results = record["results"]
    (out / "corpus-dedup.json").write_text(json.dumps(record, indent=2) + "\n")
    millions = [own["paragraphs"] / 1e6 for own in results]
    lines = [
        Line("minutes", millions, [own["seconds"] / 60 for own in results], 0, 0, markers=True),
        Line("peak memory, GB", millions, [own["peak_memory_bytes"] / 1e9 for own in results], 1, 0, markers=True),
        Line("disk, GB", millions, [own["disk_bytes"] / 1e9 for own in results], 2, 0, markers=True),
    ]
    caption = f"corpus dedup, {THREADS} threads, an index of {MEMORY} GiB."
    figure = line_plot(caption, "Time, memory and disk over the number of paragraphs.", "million paragraphs", "", lines)
    names = tuple(results[0])
    table = Table(caption, names, tuple(tuple(f"{own[name]:,}" for name in names) for own in results))
    write_report(out / "corpus-dedup.html", "corpus dedup", caption, [Section("Growth", parts=(table, figure))])


if __name__ == "__main__":
    main()
