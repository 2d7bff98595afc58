import json
import re
import resource
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from vikhr_fast.errors import InputError
from vikhr_fast.model import mistral
from vikhr_fast.model.mistral import Mistral, ModelConfig
from vikhr_fast.model.weights import EMBEDDING, HEAD, WEIGHTS_NAME, WeightFiles, write_weights

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rope_theta=500.0,
    sliding_window=5,
)
SHARD_BYTES = 12_000
INDEX = "model.safetensors.index.json"


def assert_equal_models(first: Mistral, second: Mistral) -> None:
    assert first.config == second.config
    theirs = second.state_dict()
    assert first.state_dict().keys() == theirs.keys()
    for name, value in first.state_dict().items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    directory = tmp_path / "sharded"
    Mistral(CONFIG).save_pretrained(directory, max_shard_bytes=SHARD_BYTES)
    return directory


@pytest.fixture
def single(tmp_path: Path) -> Path:
    directory = tmp_path / "single"
    Mistral(CONFIG).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, SHARD_BYTES])
def test_round_trip_through_transformers_is_bit_equal(tmp_path: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    model = Mistral(CONFIG, dtype=dtype, seed=1)
    model.save_pretrained(tmp_path / "ours", max_shard_bytes=shard_bytes)
    peer, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(peer(tokens).logits, model.logits(model(tokens)))
    peer.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    assert (tmp_path / "theirs" / INDEX).exists() == (shard_bytes == SHARD_BYTES)
    for directory in ("ours", "theirs"):
        assert_equal_models(Mistral.from_pretrained(tmp_path / directory, dtype=dtype), model)


def test_shards_keep_to_their_size_and_the_index_is_true(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    shards = sorted(sharded.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [
        f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))
    ]
    assert len(shards) > 2
    total = 0
    for shard in shards:
        with safe_open(shard, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}  # transformers 4 reads no file without it
        tensors = load_file(shard)
        sizes = [tensor.nbytes for tensor in tensors.values()]
        assert sum(sizes) <= SHARD_BYTES or len(sizes) == 1
        assert {name for name, file in index["weight_map"].items() if file == shard.name} == tensors.keys()
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    assert set(sharded.iterdir()) == {*shards, sharded / INDEX, sharded / "config.json"}


def test_reading_converts_to_the_dtype_asked_for(single: Path) -> None:
    model = Mistral.from_pretrained(single, dtype=torch.bfloat16)
    stored = load_file(single / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name].bfloat16())


def test_a_read_model_is_trainable_and_leaves_its_files_alone(single: Path) -> None:
    before = (single / "model.safetensors").read_bytes()
    model = Mistral.from_pretrained(single)
    (single / "model.safetensors").write_bytes(bytes(len(before)))  # the model must not be a view of the file
    assert_equal_models(model, Mistral(CONFIG))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_memory_stays_near_the_weights(tmp_path: Path) -> None:
    names = [f"{number}.weight" for number in range(16)]
    write_weights(tmp_path, {n: torch.ones(4 << 20, dtype=torch.bfloat16) for n in names}, max_shard_bytes=40 << 20)
    program = f"""
import re
from pathlib import Path
import torch
from vikhr_fast.model.weights import WeightFiles
def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = resident("VmRSS")
files = WeightFiles(Path({str(tmp_path)!r}))
weights = {{name: files.read(name) for name in files.tensors}}
size = sum(tensor.nbytes for tensor in weights.values())
print((resident("VmHWM") - before) / size)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # 16 tensors of 8 MiB: 1 for the weights, 1/16 for the one being read, the rest for noise
    assert float(done.stdout) < 1.3


def test_writing_takes_tensors_one_by_one_and_keeps_none(tmp_path: Path) -> None:
    alive: set[str] = set()

    def value_of(name: str) -> Tensor:
        assert not alive
        memory = np.full(250, float(name[1:]), dtype=np.float32)  # alive as long as a tensor is over it
        alive.add(name)
        weakref.finalize(memory, alive.remove, name)
        return torch.from_numpy(memory)

    tensors = {f"t{number}": torch.empty(250, device="meta") for number in range(12)}  # 1000 bytes each
    write_weights(tmp_path, tensors, value_of, 3000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    files = WeightFiles(tmp_path)
    assert all(torch.equal(files.read(name), torch.full((250,), float(name[1:]))) for name in tensors)


def test_the_bytes_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    for number, dtype in enumerate((*dtypes, None)):  # one of each; then all but float16 together
        (tmp_path / str(number)).mkdir()
        kinds = [dtype] if dtype else dtypes[:3]
        tensors = {f"{name}.{kind}": torch.randn(5, 3).to(kind) for name in "zab" for kind in kinds}
        write_weights(tmp_path / str(number), tensors)
        save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
        assert (tmp_path / str(number) / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_value_of_another_shape_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: its value has not the shape"):
        write_weights(tmp_path, {"a": torch.empty(3, 2)}, lambda _: [torch.ones(1, 2)] * 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", ["none", "equal", "other dtype", "differs"])
def test_a_tied_model_has_one_matrix(tmp_path: Path, stored: str) -> None:
    """Whether its files hold it twice or not; a head that is another matrix is for the user to choose."""
    model, again = Mistral(replace(CONFIG, tie_word_embeddings=True), seed=1), tmp_path / "again"
    model.save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert HEAD not in tensors
    if stored != "none":
        tensors[HEAD] = tensors[EMBEDDING].clone()
        if stored == "other dtype":
            tensors[HEAD] = tensors[HEAD].half()
        elif stored == "differs":
            tensors[HEAD][3, 5] += 1e-6
        save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    if stored in ("other dtype", "differs"):
        message = (
            f"model: {HEAD}: .* tied, .* stored that isn't the embedding .*; `vikhr-fast adapt --untie-head` keeps"
        )
        with pytest.raises(InputError, match=message):
            Mistral.from_pretrained(tmp_path / "model")
        return
    assert_equal_models(Mistral.from_pretrained(tmp_path / "model"), model)
    Mistral.from_pretrained(tmp_path / "model").save_pretrained(again)
    assert load_file(again / "model.safetensors").keys() == model.state_dict().keys()
    peer, report = AutoModelForCausalLM.from_pretrained(again, output_loading_info=True)
    assert not any(report.values())
    assert peer.lm_head.weight is peer.model.embed_tokens.weight


def test_nothing_is_overwritten(single: Path) -> None:
    before = (single / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=re.escape(f"{single}: exists already")):
        Mistral(CONFIG, seed=9).save_pretrained(single)
    assert (single / "model.safetensors").read_bytes() == before


def test_a_disk_that_fills_up_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = Mistral(CONFIG)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # files can't grow past this: as a full disk would act
    try:
        with pytest.raises(OSError, match="File too large"):
            model.save_pretrained(tmp_path / "out", max_shard_bytes=SHARD_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def edit(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return damage


def several(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"], tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.2.input_layernorm.weight"] = torch.ones(24)
    tensors["lm_head.weight"] = torch.ones(49, 24)
    tensors["model.embed_tokens.weight"] = torch.ones(50, 24, 1)


def turn_into_a_directory(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()


@pytest.mark.parametrize(
    ("damage", "complaints"),
    [
        (
            edit(several),
            [
                "single: the weights do not fit config.json: ",
                "model.norm.weight: missing",
                "model.layers.0.mlp.up_proj.weight: missing",
                "model.layers.2.input_layernorm.weight: unexpected",
                "lm_head.weight: shape is [49, 24], must be [50, 24]",
                "model.embed_tokens.weight: shape is [50, 24, 1], must be [50, 24]",
            ],
        ),
        (
            edit(lambda tensors: tensors.update({"lm_head.weight": torch.ones(50, 24, dtype=torch.int8)})),
            ["model.safetensors: lm_head.weight: dtype is I8, only F64, F32, F16, BF16 are read"],
        ),
        (
            lambda directory: (directory / "model.safetensors").unlink(),
            ["single: neither model.safetensors nor model.safetensors.index.json; only safetensors are read"],
        ),
        (turn_into_a_directory, ["model.safetensors: "]),
        (
            lambda directory: (directory / "model.safetensors").write_bytes(b""),
            ["model.safetensors: damaged or cut short: "],
        ),
    ],
)
def test_wrong_weights_are_all_named(single: Path, damage: Callable[[Path], None], complaints: list[str]) -> None:
    damage(single)
    assert_refused(single, complaints)


def assert_refused(directory: Path, complaints: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        Mistral.from_pretrained(directory)
    message = str(raised.value)
    assert message.startswith(str(directory))
    assert "\n" not in message
    for complaint in complaints:
        assert complaint in message


def test_every_cut_short_file_is_refused(single: Path) -> None:
    file = single / "model.safetensors"
    content = file.read_bytes()
    for kept in (1, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:kept])
        assert_refused(single, ["model.safetensors: damaged or cut short: "])


def edit_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        change(index["weight_map"])
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def lose_two_shards(directory: Path) -> None:
    first, second, *_ = sorted(directory.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "complaints"),
    [
        (lose_two_shards, ["model-00001-of-00005.safetensors: no such file", "model-00002-of-", "cut short"]),
        (
            edit_index(lambda places: places.pop("lm_head.weight")),
            [f"lm_head.weight: here, but not according to {INDEX}"],
        ),
        (
            edit_index(lambda places: places.update({"model.norm.weight": "model-00001-of-00005.safetensors"})),
            [f"model.norm.weight: missing, but {INDEX} places it here", "model.norm.weight: here, but not according"],
        ),
        (
            edit_index(lambda places: places.update({"lm_head.weight": "../elsewhere.safetensors"})),
            [f'{INDEX}: weight_map: lm_head.weight: "../elsewhere.safetensors" is not the name of a file beside it'],
        ),
        *(
            (
                edit_index(lambda places, name=name: places.update({"lm_head.weight": name})),
                ["is not the name of a file"],
            )
            for name in ("..", "a\0.safetensors", "\ud800.safetensors", "pytorch_model.bin", "")
        ),
        (edit_index(dict.clear), [f"{INDEX}: weight_map: must be an object of tensor names and file names"]),
        (lambda directory: (directory / INDEX).write_text("{"), [f"{INDEX}: damaged: line 1, column 2: not JSON"]),
    ],
)
def test_wrong_shards_are_all_named(sharded: Path, damage: Callable[[Path], None], complaints: list[str]) -> None:
    damage(sharded)
    assert_refused(sharded, complaints)


def test_headers_tell_shapes_and_dtypes_without_reading(sharded: Path) -> None:
    files = WeightFiles(sharded)
    expected = {name: value.shape for name, value in Mistral(CONFIG).state_dict().items()}
    assert {name: tensor.shape for name, tensor in files.tensors.items()} == expected
    assert {(tensor.dtype, tensor.device.type) for tensor in files.tensors.values()} == {(torch.float32, "meta")}


@pytest.mark.parametrize("shape", [[0, 2**40, 2**40], [2**40, 0, 2**9], [0, 2**63], [0, 2**64 - 1]])
def test_an_empty_tensor_of_any_shape_is_one_line(tmp_path: Path, shape: list[int]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / WEIGHTS_NAME).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match=r"^[^\n]*model.safetensors: [^\n]+$"):
        WeightFiles(tmp_path)


def test_layers_that_the_files_have_not_are_refused_before_any_is_built(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> None:
        raise AssertionError("a layer is built")

    values = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 4096}))
    monkeypatch.setattr(mistral.DecoderLayer, "__init__", build)
    tensors = len(load_file(single / "model.safetensors"))
    assert_refused(single, [f"num_hidden_layers is 4,096, but there are only {tensors} tensors"])


def test_an_index_of_many_files_is_read_in_little_time(tmp_path: Path) -> None:
    """Once it took the product of files and tensors, hours here; what is missing is named up to a line's length."""
    count = 20_000
    places = {f"{number}.weight": f"model-{number}.safetensors" for number in range(count)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(
        InputError, match=r"model-0\.safetensors: no such file.* \.\.\. .*model-9999\.safetensors"
    ) as caught:
        WeightFiles(tmp_path)
    assert len(str(caught.value)) < 5000
