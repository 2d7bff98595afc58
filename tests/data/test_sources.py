"""Every kind of source."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vikhr_fast.data.sources import read_texts, source_files
from vikhr_fast.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_patterns_take_files_of_any_kind_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "два"}\n')
    (tmp_path / "a.txt").write_text("раз")
    pq.write_table(pa.table({"text": ["три"]}), tmp_path / "c.parquet")
    (tmp_path / "d [1].txt").write_text("четыре")
    assert list(read_texts(tmp_path / "*")) == ["раз", "два", "три", "четыре"]
    assert list(read_texts(tmp_path / "d [1].txt")) == ["четыре"]  # a name, not a pattern
    with pytest.raises(InputError, match=r"\*\.gz: no file has such a name"):
        list(read_texts(tmp_path / "*.gz"))
    with pytest.raises(InputError, match="no such file"):
        list(read_texts(tmp_path / "absent.txt"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands for the package `datasets`; the calls it gets."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, **settings: Any) -> list[dict[str, Any]]:
        calls.append((name, config, settings))
        if name == "no/set":
            raise FileNotFoundError("Dataset 'no/set' doesn't exist\non the Hub")
        return [{"text": "раз", "id": 1}, {"text": None if name == "bad/set" else "два", "id": 2}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_data_sets_of_the_hub_are_pinned_and_run_no_code(hub: list[tuple[Any, ...]]) -> None:
    assert list(read_texts(Path(f"hf:owner/set@{COMMIT}"))) == ["раз", "два"]
    assert list(read_texts(Path(f"hf:owner/set@{COMMIT}/ru/test"))) == ["раз", "два"]
    fixed = {"revision": COMMIT, "streaming": True, "trust_remote_code": False}
    assert hub == [("owner/set", None, {"split": "train", **fixed}), ("owner/set", "ru", {"split": "test", **fixed})]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("hf:owner/set", r"must be hf:OWNER/NAME@COMMIT\["),
        ("hf:owner/set@main", "must be .* COMMIT is the 40 digits"),
        (f"hf:no/set@{COMMIT}", "cannot be read: Dataset 'no/set' doesn't exist on the Hub"),
        (f"hf:bad/set@{COMMIT}", "row 2: column 'text': NoneType, not text"),
    ],
)
def test_what_the_hub_has_not_is_named(hub: list[tuple[Any, ...]], source: str, complaint: str) -> None:
    with pytest.raises(InputError, match=f"^{source}: {complaint}"):
        list(read_texts(Path(source)))
    assert len(hub) <= 1


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package datasets; pip install 'vikhr-fast\[datasets\]'"):
        list(read_texts(Path(f"hf:owner/set@{COMMIT}")))


def test_raw_files_of_a_data_set_are_fetched_at_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class HttpError(Exception):
        """As of the Hub's HTTP library: a kind of nothing in particular."""

    class Api:
        def list_repo_files(self, **where: str) -> list[str]:
            calls.append(where)
            if where["repo_id"] == "no/set":
                raise HttpError("404 Client\nError")
            return ["README.md", "b.jsonl", "a.jsonl", "set.py"]

    def download(filename: str, **where: str) -> str:
        calls.append({"file": filename, **where})
        (tmp_path / filename).write_text(f'{{"text": "{filename}"}}\n')
        return str(tmp_path / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, hf_hub_download=download))
    assert list(read_texts(Path(f"hf:owner/set@{COMMIT}:*.jsonl"))) == ["a.jsonl", "b.jsonl"]
    assert {call["revision"] for call in calls} == {COMMIT}
    assert {call["repo_type"] for call in calls} == {"dataset"}
    with pytest.raises(InputError, match="no file of the data set has such a name"):
        list(read_texts(Path(f"hf:owner/set@{COMMIT}:*.parquet")))
    with pytest.raises(InputError, match="cannot be fetched: 404 Client Error"):
        list(read_texts(Path(f"hf:no/set@{COMMIT}:*")))
    with pytest.raises(InputError, match="COMMIT is the 40 digits"):
        list(read_texts(Path("hf:owner/set@main:*.jsonl")))


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + "/новости.txt".encode("cp1251"))
    try:
        Path(name).write_text("текст")
    except OSError:
        pytest.skip("this file system has no such names")
    for source in (tmp_path / "*.txt", Path(name)):
        with pytest.raises(InputError, match=r"xed.*: the name is not UTF-8; rename it"):
            source_files(source)
