"""The emulator gate: runs the interpreter tests on kernels as compiled for A100 and H100, in bf16, fp16 and fp32.

    python tests/gates/emulate.py [--architecture 80 90] [--cases gate|all] [--seed 1] [--rough]

Each architecture is a process of its own. Fails where a result is wrong or the emulator finds anything; see
tests/emulator/README.md for what it looks at. Prints what was launched: kernels by architecture and dtype.
"""

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import triton
from rich.console import Console
from rich.table import Table

from vikhr_kernels import dispatch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/emulator"))
TARGET_SECONDS = 120  # of the gate's cases, both architectures together


def start(architecture: int, options: argparse.Namespace, record: Path) -> "subprocess.Popen[bytes]":
    without = ("TRITON_INTERPRET", "PYTEST_ADDOPTS")
    environment = {name: value for name, value in os.environ.items() if name not in without} | {
        "EMULATED_ARCHITECTURE": str(architecture),
        "EMULATED_CASES": options.cases,
        "EMULATED_SEED": str(options.seed),
        "EMULATED_ROUGH": str(int(options.rough)),
        "EMULATED_RECORD": str(record),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "tests/kernels/interpreter",
    ]
    with record.with_suffix(".log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def ended(code: int) -> str:
    """A return code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def show(rows: dict[int, list[dict[str, Any]]]) -> None:
    table = Table("", "kernel", "dtype", "cases", "launches", "lane instructions", "seconds executed")
    for architecture, cases in rows.items():
        kernels = collections.defaultdict(list)
        for case in cases:
            kernels[case["kernel"], case["dtype"]].append(case)
        for (kernel, dtype), own in sorted(kernels.items()):
            tests = len({case["test"] for case in own})
            lanes, seconds = (sum(case[what] for case in own) for what in ("lane_instructions", "seconds"))
            table.add_row(
                f"sm_{architecture}", kernel, dtype, str(tests), str(len(own)), f"{lanes / 1e6:.1f} M", f"{seconds:.2f}"
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def seed(text: str) -> int:
    if not 0 <= int(text) < 2**64:
        raise ValueError
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/gates/emulate.py", description="The emulator gate.")
    known = sorted(dispatch.ARCHITECTURES)
    parser.add_argument("--architecture", type=int, nargs="+", choices=known, default=known,
                        help="those that the kernels have tiles for; both by default")  # fmt: skip
    parser.add_argument("--cases", choices=["gate", "all"], default="gate", help="those marked `gate`, or all")
    parser.add_argument("--seed", type=seed, default=1, help="how blocks and warps are shuffled; 0: not at all")
    parser.add_argument("--rough", action="store_true", help="numbers as wrong as the hardware's may be")
    options = parser.parse_args()
    try:
        import ptx_emulator  # noqa: F401
    except ImportError as error:
        parser.exit(1, f"{error}\n")
    begun = time.monotonic()
    failed, rows = [], {}
    with tempfile.TemporaryDirectory() as directory:
        records = {architecture: Path(directory) / f"{architecture}.json" for architecture in options.architecture}
        runs: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for architecture, record in records.items():
                runs[architecture] = start(architecture, options, record)
            for architecture, run in runs.items():
                run.wait()
                output = records[architecture].with_suffix(".log").read_text(encoding="utf-8", errors="replace")
                print(f"sm_{architecture}: {(output.strip().splitlines() or ['no output'])[-1]}")
                if records[architecture].exists():
                    rows[architecture] = json.loads(records[architecture].read_text(encoding="utf-8"))
                if run.returncode != 0:
                    failed.append(f"sm_{architecture} ({ended(run.returncode)})")
                    print(output[-20_000:])
                elif not rows.get(architecture):
                    failed.append(f"sm_{architecture} (nothing was launched)")
        finally:
            for run in runs.values():
                run.kill()
                run.wait()
    show(rows)
    seconds = time.monotonic() - begun
    target = f", target {TARGET_SECONDS} s" if options.cases == "gate" else ""
    print(f"Triton {triton.__version__}, seed {options.seed}: {seconds:.0f} s with compiling{target}")
    if failed:
        print("FAILED: " + ", ".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
