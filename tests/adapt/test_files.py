import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import ROWS, RUSSIAN, weights
from safetensors.torch import load_file

from vikhr_fast.adapt.adapt import EMBEDDING, HEAD, Adapt, adapt
from vikhr_fast.adapt.rows import Init
from vikhr_fast.errors import InputError
from vikhr_fast.model import weights as module
from vikhr_fast.model.config import ModelConfig, write_config
from vikhr_fast.model.weights import WeightFiles, write_weights


@pytest.fixture(autouse=True)
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vikhr_fast.adapt.adapt.MAX_SHARD_BYTES", 40_000)


def test_files_are_numbered_and_the_index_fits(options: Adapt) -> None:
    adapt(options)
    index = json.loads((options.output / "model.safetensors.index.json").read_text())
    files = sorted(options.output.glob("*.safetensors"))
    assert len(files) > 2
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    assert index["weight_map"].keys() == weights(options.base).keys()
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in weights(options.output).values())}
    for file in files:
        assert index["weight_map"].items() >= dict.fromkeys(load_file(file), file.name).items()


def test_same_input_gives_the_same_bytes(options: Adapt, tmp_path: Path) -> None:
    adapt(options)
    adapt(replace(options, output=tmp_path / "again"))
    first, again = ({f.name: f.read_bytes() for f in d.iterdir()} for d in (options.output, tmp_path / "again"))
    assert first == again


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_weights_that_shrink_meanwhile_leave_nothing(options: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    def shrinking(files: WeightFiles, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        for file in options.base.glob("*.safetensors"):
            os.truncate(file, 1)
        return read(files, name, dtype)

    read = WeightFiles.read
    monkeypatch.setattr(WeightFiles, "read", shrinking)
    with pytest.raises(InputError, match=r"model-\d+-of-\d+\.safetensors: damaged or cut short"):
        adapt(options)
    assert {path.name for path in options.base.parent.iterdir()} == {"base"}


@pytest.mark.slow
def test_killed_anywhere_and_started_again_gives_the_same_bytes(options: Adapt, tmp_path: Path) -> None:
    """Killed in the middle of a file; a finished file is never made again."""
    adapt(replace(options, output=tmp_path / "whole"))
    program = """
import os, signal, sys
from pathlib import Path
from vikhr_fast.adapt import adapt
from vikhr_fast.model import weights
def write_rows(file, *rest):
    original(file, *rest)
    file.flush()
    made[Path(file.name).name.split(".")[1]] = None
    if len(made) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
original, made, weights._write_rows, adapt.MAX_SHARD_BYTES = weights._write_rows, {}, write_rows, 40_000
adapt.adapt(adapt.Adapt(*map(Path, sys.argv[1:4])))
print(*made)
"""
    arguments = [str(options.base), str(options.output), str(options.tokenizer)]
    for nth in (2, 0):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, str(nth)], capture_output=True, text=True, check=False
        )
        assert done.returncode == (-signal.SIGKILL if nth else 0), done.stderr
        assert options.output.exists() == (nth == 0)
        assert options.output.with_name("out.partial").exists() == (nth > 0)
    assert list(tmp_path.rglob("*.partial")) == []
    assert files_of(options.output) == files_of(tmp_path / "whole")
    names = sorted(file.stem for file in options.output.glob("*.safetensors"))
    assert done.stdout.split() == names[1:]


@pytest.mark.parametrize("init", ["mean", "mean-and-share"])
def test_after_a_full_disk_the_same_work_goes_on_and_no_other(
    options: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: Init
) -> None:
    def filling_up(file: Any, *rest: Any) -> None:
        if "model-00002" in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, *rest)

    options = replace(options, init=init, frequencies=() if init == "mean" else (RUSSIAN,))
    adapt(replace(options, output=tmp_path / "whole"))
    original = module._write_rows
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_rows", filling_up)
        with pytest.raises(OSError, match="No space left"):
            adapt(options)
    partial = options.output.with_name("out.partial")
    assert [file.name.split("-of-")[0] for file in (partial / "result").iterdir()] == ["model-00001"]
    assert not options.output.exists()
    with pytest.raises(InputError, match=r"out\.partial: left behind by work with other settings or inputs"):
        adapt(replace(options, init="random", frequencies=()))
    adapt(options)
    assert not partial.exists()
    assert files_of(options.output) == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """As the system counts: a base of 160 MB, whose matrices grow from 33 to 79 MB."""
    width = 16_384
    tensors = {name: torch.full((ROWS, width), 0.5) for name in (EMBEDDING, HEAD)}
    tensors |= {f"model.layers.{layer}.weight": torch.ones(ROWS, width) for layer in range(3)}
    (tmp_path / "base").mkdir()
    write_weights(tmp_path / "base", tensors, max_shard_bytes=100_000_000)
    del tensors
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 256}
    shape = ModelConfig(vocab_size=ROWS, hidden_size=width, intermediate_size=8, num_hidden_layers=1, **heads)
    write_config(tmp_path / "base", shape, torch.float32)
    shutil.copy(tokenizers[0] / "tokenizer.model", tmp_path / "base")
    program = """
import re, sys
from pathlib import Path
import torch, sentencepiece, transformers
from vikhr_fast.model import weights
from vikhr_fast.adapt.adapt import Adapt, adapt
def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = memory("VmRSS")
adapt(Adapt(*map(Path, sys.argv[1:4])))
print(memory("VmHWM") - before)
"""
    arguments = [str(path) for path in (tmp_path / "base", tmp_path / "out", tokenizers[1])]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    largest = 1200 * width * 4  # the adapted matrix
    assert int(done.stdout) < 2.2 * largest
