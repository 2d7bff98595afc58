"""A short run of the fuzzing of readers; `tests/gates/fuzz_readers.py` runs as long as it is given."""

from pathlib import Path

import fuzz_readers
import pytest
from fuzz_readers import TARGETS, fuzz
from subjects import Subject

from vikhr_fast.errors import InputError

INPUTS = {"json": 10, "toml": 60, "safetensors": 100}  # of each subject, a few hundred a target


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_whatever_is_in_a_file_it_is_read_or_refused_in_one_line(target: str) -> None:
    counts, failures = fuzz([target], seed=0, count=INPUTS.get(target, 100))
    assert not failures, "\n".join(map(str, failures))
    assert sum(own["read"] for own in counts.values())
    assert sum(own["refused"] for own in counts.values())


def ends(file: Path) -> None:
    """A reader with a fault of each kind, by the first character of its file."""
    kind = file.read_bytes()[:1]
    if kind == b"l":
        while True:
            pass
    elif kind == b"m":
        bytearray(4 << 30)
    elif kind == b"o":
        raise InputError("one line")
    elif kind == b"k":
        raise KeyError("a")


@pytest.mark.slow
def test_faults_of_every_kind_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"x")
    kinds = [b"l", b"m", b"o", b"k", b"x"]
    monkeypatch.setattr(fuzz_readers, "SECONDS", 1)
    monkeypatch.setattr(fuzz_readers, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(fuzz_readers, "mutated", lambda _content, _kind, chance: chance.choice(kinds))
    monkeypatch.setitem(TARGETS, "faulty", lambda _: [Subject("faulty", file, ends, "bytes")])
    counts, failures = fuzz(["faulty"], seed=0, count=40)
    found = {failure.result.outcome.partition(" in ")[0]: failure.file.read_bytes() for failure in failures}
    assert found == {"took more than 1 s": b"l", "MemoryError": b"m", "KeyError": b"k"}
    assert counts["faulty: faulty"].total() == 40
    assert set(counts["faulty: faulty"]) > {"read", "refused"}
