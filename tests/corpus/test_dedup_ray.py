"""Dedup on two Ray workers: the bytes of one machine, a killed worker notwithstanding."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import directory_bytes, make_documents, noisy_sources

from vikhr_fast.corpus.dedup_stage import Dedup, dedup
from vikhr_fast.corpus.settings import DedupStage, Machine
from vikhr_fast.data.documents import Documents
from vikhr_fast.errors import InputError

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.nightly  # a cluster takes half a minute to start

RAY = Machine(engine="ray", ray_address="local", threads=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    return make_documents(tmp_path_factory.mktemp("noisy"), noisy_sources(400, seed=3), part_bytes=12_000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, documents: Documents) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    dedup(Dedup(documents.directory, output, DedupStage(), Machine(threads=1)))
    assert Documents.open(output).total["removed_paragraphs"] > 100
    return output


@pytest.mark.usefixtures("cluster")
def test_the_bytes_are_those_of_one_machine(documents: Documents, whole: Path, tmp_path: Path) -> None:
    dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), RAY))
    assert directory_bytes(tmp_path / "out") == directory_bytes(whole)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_survived(documents: Documents, whole: Path, tmp_path: Path) -> None:
    killed: list[str] = []
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.is_set() and len(killed) < 3:
            listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
            for pid, title in re.findall(
                r"^ *(\d+) (ray::(?:MapBatches|_map_task|Map|hash_shuffle|Shuffle)\S*)", listed, re.M
            ):
                os.kill(int(pid), signal.SIGKILL)
                killed.append(title)
                break
            time.sleep(0.3)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        dedup(Dedup(documents.directory, tmp_path / "out", DedupStage(), RAY))
    finally:
        is_over.set()
        thread.join()
    assert killed
    assert directory_bytes(tmp_path / "out") == directory_bytes(whole)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "texts",
    [
        ["раз два"],
        ["один два три четыре пять шесть"],
        ["один два три четыре пять шесть"] * 3,
        ["!!! ??? ... --- +++ ***"],
    ],
)
def test_without_anything_to_compare(texts: list[str], tmp_path: Path) -> None:
    documents = make_documents(tmp_path, {"s": texts})
    dedup(Dedup(documents.directory, tmp_path / "one", DedupStage(), Machine(threads=1)))
    dedup(Dedup(documents.directory, tmp_path / "ray", DedupStage(), RAY))
    assert directory_bytes(tmp_path / "ray") == directory_bytes(tmp_path / "one")


def test_without_a_cluster_its_address_is_named(tmp_path: Path) -> None:
    documents = make_documents(tmp_path, {"s": ["раз"]})
    if ray.is_initialized():
        ray.shutdown()
    for address in ("127.0.0.1:1", "auto"):
        with pytest.raises(InputError, match=f"ray_address {address}: no cluster"):
            dedup(
                Dedup(documents.directory, tmp_path / "out", DedupStage(), Machine(engine="ray", ray_address=address))
            )
