"""The reference in float8: how far its KL is off, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from training_runs import make_config, run_ranks

from vikhr_fast.config import RuntimeConfig, config_values
from vikhr_fast.errors import InputError
from vikhr_fast.model import ModelConfig
from vikhr_fast.train.float8 import FLOAT8, Float8Linear, quantise, require_float8
from vikhr_fast.train.loop import train
from vikhr_fast.train.metrics import METRICS, read_lines


def test_rows_keep_their_own_range() -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-6], [1], [1e5], [0], [3]])
    values, scales = quantise(x)
    assert values.dtype == FLOAT8
    assert ((values.float() * scales - x).abs() <= 2.0**-4 * x.abs() + 2.0**-9 * scales).all()  # 3 bits of mantissa
    assert values.float().abs().amax(-1).tolist() == [448, 448, 448, 0, 448]


def test_a_product_is_near_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(7, 256, generator=generator), torch.randn(32, 256, generator=generator)
    linear = Float8Linear(256, 32)
    linear.weight.data, linear.scale.data = quantise(weight)
    exact = F.linear(x, weight)
    error = (linear(x) - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.05


def lines(workspace: Path, output: Path, **runtime: object) -> list[dict[str, float]]:
    train(make_config(workspace, output, runtime={"dtype": "float32", **runtime}, schedule={"max_steps": 6}))
    return read_lines(output / METRICS)


def test_the_kl_is_off_by_little(workspace: Path, tmp_path: Path) -> None:
    exact = lines(workspace, tmp_path / "exact")
    float8 = lines(workspace, tmp_path / "float8", float8_reference=True)
    assert exact[0]["kl"] == 0
    assert 0 < float8[0]["kl"] < 0.02 * exact[-1]["kl"]  # at the first step it is the error itself
    assert float8[0]["ce"] == exact[0]["ce"]
    assert float8[-1]["kl"] == pytest.approx(exact[-1]["kl"], rel=0.05)


def test_its_shards_are_gathered_as_they_are(workspace: Path, tmp_path: Path) -> None:
    config = make_config(
        workspace, tmp_path / "two", runtime={"dtype": "bfloat16", "float8_reference": True}, schedule={"max_steps": 2}
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_values(config)))
    program = "import json, sys; from vikhr_fast.config import train_config; from vikhr_fast.train.loop import train"
    run_ranks(["-c", f"{program}; train(train_config(json.load(open(sys.argv[1])), 'test'))", str(file)], 2)
    alone = lines(workspace, tmp_path / "one", dtype="bfloat16", float8_reference=True)
    for ours, expected in zip(read_lines(tmp_path / "two" / METRICS), alone, strict=False):
        assert ours["kl"] == pytest.approx(expected["kl"], rel=0.05)


def test_what_cannot_be_is_refused(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"runtime.float8_reference: kl.weight is 0, so that there is no reference"):
        train(make_config(workspace, tmp_path / "run", kl={"weight": 0.0}, runtime={"float8_reference": True}))
    sizes = {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128}
    shape = ModelConfig(**sizes, intermediate_size=96)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with pytest.raises(InputError, match=r"float8_reference: A100 has no float8; it needs compute capability 8.9"):
        require_float8(RuntimeConfig(), shape)
    require_float8(RuntimeConfig(device="cpu"), shape)
    capability = (9, 0)
    require_float8(RuntimeConfig(), shape)
    with pytest.raises(InputError, match=r'needs runtime.dtype = "bfloat16" on a GPU, not \'float32\''):
        require_float8(RuntimeConfig(dtype="float32"), shape)
    with pytest.raises(InputError, match="aren't all multiples of 16"):
        require_float8(RuntimeConfig(), ModelConfig(**sizes, intermediate_size=97))
