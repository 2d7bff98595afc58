"""What a step calls and holds in every way to shard it, on four ranks: as `plan` says, and the losses are the same."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from training_runs import make_config, run_ranks, write_model

from vikhr_fast.config import TrainConfig, config_values
from vikhr_fast.model.config import read_config
from vikhr_fast.plan.collectives import collectives, parts
from vikhr_fast.plan.memory import Parameters, memory

pytestmark = pytest.mark.slow

RANKS, ACCUMULATION = 4, 4
RECORDER = Path(__file__).parents[1] / "helpers" / "record_steps.py"


class Way(NamedTuple):
    """One run; `reference` is "whole", or the micro-batches of one of its forwards."""

    keep: bool
    reference: int | str
    reduce: bool
    dtype: str = "float64"
    master: str = "float32"
    replicas: int = 1
    fraction: float = 1.0
    tied: bool = False


COMBINATIONS = [Way(*way) for way in itertools.product((False, True), (1, 2, "whole"), (False, True))]
NARROW = [way._replace(dtype="bfloat16") for way in COMBINATIONS]
SPLIT = [way._replace(master="split") for way in NARROW if way.reference == 2]
REPLICAS = [way._replace(replicas=2) for way in (*COMBINATIONS, *SPLIT) if way.reference == 2]
FRACTIONS = [way._replace(fraction=0.5) for way in COMBINATIONS if way.reference != 1 and way.reduce]
TIED = [way._replace(tied=True) for way in (*COMBINATIONS, *NARROW, *SPLIT, *REPLICAS) if way.reference == 2]
WAYS = (*COMBINATIONS, *NARROW, *SPLIT, *REPLICAS, *FRACTIONS, *TIED)


def config_of(way: Way, workspace: Path, output: Path) -> TrainConfig:
    whole = way.reference == "whole"
    config = make_config(
        workspace,
        output,
        "tied" if way.tied else "model",
        batch={"micro_batch": 1, "sequences_per_step": RANKS * ACCUMULATION},
        optimizer={"master": way.master, "max_grad_norm": 0.5},
        kl={"fraction": way.fraction},
        runtime={
            "dtype": way.dtype,
            "keep_gathered": way.keep,
            "whole_reference": whole,
            "reference_micro_batches": 1 if whole else way.reference,
            "reduce_each_micro_batch": way.reduce,
            "replicas": way.replicas,
        },
    )
    return config if way.dtype == "float64" else replace(config, model=workspace / f"wide {config.model.name}")


class Recorded(NamedTuple):
    config: TrainConfig
    losses: list[list[float]]
    calls: Counter[tuple[str, int, int, int]]
    memory: dict[str, int]


@pytest.fixture(scope="module")
def recordings(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Way, Recorded]:
    root = tmp_path_factory.mktemp("ways")
    for name in ("model", "tied"):  # a layer of these is larger than the head, as it is at 7B
        write_model(workspace, f"wide {name}", replace(read_config(workspace / name), intermediate_size=480))
    configs, files = {}, []
    for way in WAYS:
        directory = root / "-".join(map(str, way))
        directory.mkdir()
        configs[way] = config_of(way, workspace, directory / "run")
        (directory / "config.json").write_text(json.dumps(config_values(configs[way])))
        files.append(str(directory / "config.json"))
    run_ranks([str(RECORDER), *files], RANKS)
    found = {}
    for way, config in configs.items():
        recorded: dict[str, Any] = json.loads((config.output.parent / "recorded.json").read_text())
        calls = Counter({(kind, *numbers[:3]): numbers[3] for kind, *numbers in recorded["calls"]})
        found[way] = Recorded(config, recorded["losses"], calls, recorded["memory"])
    return found


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_step_calls_what_the_plan_says(recordings: dict[Way, Recorded], way: Way) -> None:
    recorded = recordings[way]
    planned: Counter[tuple[str, int, int, int]] = Counter()
    for call in collectives(recorded.config, read_config(recorded.config.model), RANKS):
        planned[call.kind, call.ranks, call.elements, call.item_bytes] += call.times
    assert recorded.calls == planned


@pytest.mark.parametrize("reference", ["whole", 2])
def test_kept_weights_are_gathered_once_a_step(recordings: dict[Way, Recorded], reference: int | str) -> None:
    model = read_config(recordings[COMBINATIONS[0]].config.model)
    layer = next(part for part in parts(model) if part.name == "layer")
    gather = ("all-gather", RANKS, layer.elements(RANKS), 8)
    of_reference = 0 if reference == "whole" else ACCUMULATION // 2
    kept, gathered = (recordings[Way(keep, reference, True)].calls[gather] for keep in (True, False))
    assert kept == layer.count * (1 + of_reference)
    assert gathered == layer.count * (2 * ACCUMULATION + of_reference)


@pytest.mark.parametrize(
    "way", [way for way in (*COMBINATIONS[1:], *REPLICAS, *TIED[1:]) if way.dtype == "float64"], ids=str
)
def test_no_way_changes_what_is_learnt(recordings: dict[Way, Recorded], way: Way) -> None:
    actual, expected = recordings[way].losses, recordings[TIED[0] if way.tied else COMBINATIONS[0]].losses
    assert expected[-1][2] > 1e-4  # or the KL wasn't tested
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("way", FRACTIONS[1:], ids=str)
def test_nor_does_any_with_a_share_of_the_kl(recordings: dict[Way, Recorded], way: Way) -> None:
    actual, expected, full = (recordings[found].losses for found in (way, FRACTIONS[0], COMBINATIONS[0]))
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert expected[-1][2] != pytest.approx(full[-1][2], rel=1e-3)
    assert expected[-1][-1] == pytest.approx(full[-1][-1] / 2, rel=0.05)  # FLOPs of the reference


@pytest.mark.parametrize("way", [way for way in WAYS if way.master == "split"], ids=str)
def test_split_masters_learn_the_same(recordings: dict[Way, Recorded], way: Way) -> None:
    whole = next(other for other in WAYS if other.dtype == "bfloat16" and other.tied == way.tied)
    for ours, theirs in zip(recordings[way].losses, recordings[whole].losses, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("way", [way for way in WAYS if way.dtype == "bfloat16" and way.replicas == 1], ids=str)
def test_a_step_holds_what_the_plan_says(recordings: dict[Way, Recorded], way: Way) -> None:
    recorded = recordings[way]
    shape = read_config(recorded.config.model)
    planned = memory(recorded.config, shape, RANKS)
    if way.tied:  # autograd has the head's gradient until the embedding's is there, and FSDP2 sees it after that
        planned["gradients not yet reduced"] -= 2 * Parameters.of(shape).head
    assert {"gathered parameters", "gradients not yet reduced", "gradients", "moments"} <= recorded.memory.keys()
    for name, size in recorded.memory.items():
        assert size == pytest.approx(planned[name], rel=0.05), name
