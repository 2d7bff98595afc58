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
from adapting import ROWS, weights
from safetensors import safe_open

from vikhr_fast.adapt import Adapt, adapt
from vikhr_fast.adapt_weights import EMBEDDING, HEAD
from vikhr_fast.errors import InputError
from vikhr_fast.model_config import ModelConfig, write_config
from vikhr_fast.weights import write_weights


def test_files_keep_their_names_and_the_index_fits(options: Adapt) -> None:
    adapt(options)
    shards = {file.name for file in options.base.glob("*.safetensors")}
    assert len(shards) > 2
    assert {file.name for file in options.output.glob("*.safetensors")} == shards
    index = json.loads((options.output / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((options.base / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in weights(options.output).values())}
    with safe_open(options.output / index["weight_map"][EMBEDDING], "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_same_input_gives_the_same_bytes(options: Adapt, tmp_path: Path) -> None:
    adapt(options)
    adapt(replace(options, output=tmp_path / "again"))
    first, again = ({f.name: f.read_bytes() for f in d.iterdir()} for d in (options.output, tmp_path / "again"))
    assert first == again


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_weights_that_shrink_meanwhile_leave_nothing(options: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    from vikhr_fast import adapt_weights as module

    def shrinking(reader: Any, writer: Any, size: int) -> None:
        os.truncate(reader.name, 1)
        original(reader, writer, size)

    original = module._copy
    monkeypatch.setattr(module, "_copy", shrinking)
    with pytest.raises(InputError, match=r"model-\d+-of-\d+\.safetensors: became shorter while it was read"):
        adapt(options)
    assert {path.name for path in options.base.parent.iterdir()} == {"base"}


def test_killed_anywhere_and_started_again_gives_the_same_bytes(options: Adapt, tmp_path: Path) -> None:
    """Killed in the middle of each file in turn; a finished file is never made again."""
    adapt(replace(options, output=tmp_path / "whole"))
    program = """
import os, signal, sys
from pathlib import Path
from vikhr_fast import adapt_weights
from vikhr_fast.adapt import Adapt, adapt
original, files = adapt_weights._rewrite, 0
def rewrite(source, file, writer, *rest):
    original(source, file, writer, *rest)
    writer.flush()
    os.kill(os.getpid(), signal.SIGKILL) if source.name == sys.argv[4] else print(source.name, flush=True)
adapt_weights._rewrite = rewrite
adapt(Adapt(*map(Path, sys.argv[1:4])))
"""
    names = sorted(file.name for file in options.base.glob("*.safetensors"))
    arguments = [str(options.base), str(options.tokenizer), str(options.output)]
    made: list[str] = []
    for name in [names[1], "none"]:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, name], capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if name == "none" else -signal.SIGKILL), done.stderr
        made += done.stdout.split()
        assert options.output.exists() == (name == "none")
        assert options.output.with_name("out.partial").exists() == (name != "none")
    leftovers = list(tmp_path.rglob("*.partial"))
    assert leftovers == []
    assert made == names
    assert files_of(options.output) == files_of(tmp_path / "whole")


def test_after_a_full_disk_the_same_work_goes_on_and_no_other(options: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    from vikhr_fast import adapt_weights as module

    def filling_up(source: Path, *rest: Any) -> None:
        if source.name == names[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, *rest)

    original = module._rewrite
    names = sorted(file.name for file in options.base.glob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_rewrite", filling_up)
        with pytest.raises(OSError, match="No space left"):
            adapt(options)
    partial = options.output.with_name("out.partial")
    assert [file.name for file in (partial / "result").iterdir()] == names[:1]
    assert not options.output.exists()
    with pytest.raises(InputError, match=r"out\.partial: left behind by work with other settings or inputs"):
        adapt(replace(options, init="random"))
    adapt(options)
    assert not partial.exists()


def test_memory_is_bounded_by_the_largest_tensor(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """As the system counts: a base of 160 MB, whose matrices grow from 33 to 79 MB."""
    width = 16_384
    tensors = {name: torch.full((ROWS, width), 0.5) for name in (EMBEDDING, HEAD)}
    tensors |= {f"model.layers.{layer}.weight": torch.ones(ROWS, width) for layer in range(3)}
    (tmp_path / "base").mkdir()
    write_weights(tmp_path / "base", tensors.items(), max_shard_bytes=100_000_000)
    del tensors
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 256}
    shape = ModelConfig(vocab_size=ROWS, hidden_size=width, intermediate_size=8, num_hidden_layers=1, **heads)
    write_config(tmp_path / "base", shape, torch.float32)
    shutil.copy(tokenizers[0] / "tokenizer.model", tmp_path / "base")
    program = """
import re, sys
from pathlib import Path
import torch, sentencepiece, transformers
from vikhr_fast import adapt_weights, weights
from vikhr_fast.adapt import Adapt, adapt
def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = memory("VmRSS")
adapt(Adapt(*map(Path, sys.argv[1:4])))
print(memory("VmHWM") - before)
"""
    arguments = [str(path) for path in (tmp_path / "base", tokenizers[1], tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    largest = 1200 * width * 4  # the adapted matrix
    assert int(done.stdout) < 2.2 * largest
