"""Split masters beside float32 ones over a training run: are the losses the same, and does a resumed run go on?

    python bench/masters.py OUT [--demo runs/demo] [--config FILE.json] [--steps 200] [--ranks 1]

Trains the demo's adapted model (`make demo` first), or what a configuration says, in bf16, once for each way of
keeping the masters, from the same gradients' code:

    split       bf16 parameters and their remainders, this package's AdamW
    whole       float32 masters, the same AdamW as written in `vikhr_kernels.reference`
    fused       float32 masters, torch.optim.AdamW(fused=True)
    loop        float32 masters, torch.optim.AdamW(foreach=False): what two right roundings of one formula differ by
    float32     optimizer.master = "float32": the same, on several ranks under FSDP2's mixed precision
    resumed     split, gone on with from the checkpoint half-way

Writes OUT/masters.json; the exit code is 1 unless split, whole and resumed are equal bit for bit.
"""

import argparse
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vikhr_fast.config import TrainConfig, config_values, read_toml, train_config
from vikhr_fast.distributed.sharding import local
from vikhr_fast.experiments.demo.paths import DemoPaths
from vikhr_fast.io.append_only import read_lines
from vikhr_fast.io.files import write_text
from vikhr_fast.io.run_directory import environment
from vikhr_fast.train import assembly, loop
from vikhr_fast.train.checkpoint import complete_checkpoints
from vikhr_fast.train.metrics import METRICS
from vikhr_fast.train.split_adamw import SplitAdamW
from vikhr_kernels import join_master, reference, split_master

WAYS = ("split", "whole", "fused", "loop", "float32")


class WholeMasters(SplitAdamW):
    """Float32 masters kept whole beside the bf16 parameters, which are rounded from them as the split ones are."""

    way = "whole"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._masters = {
            parameter: join_master(local(parameter.detach()), local(self.state[parameter]["remainder"]))
            for parameter in self.stored.values()
        }
        groups = [{**group, "params": [self._masters[p] for p in group["params"]]} for group in self.param_groups]
        chosen = {"fused": {"fused": True}, "loop": {"foreach": False}}.get(self.way)
        self._torch = torch.optim.AdamW(groups, **chosen) if chosen else None

    @torch.no_grad()
    def _step(self, scale: Tensor) -> None:
        for number, group in enumerate(self.param_groups):
            states = [self.state[parameter] for parameter in group["params"]]
            masters = [self._masters[parameter] for parameter in group["params"]]
            gradients = [self._gradients.of(parameter) for parameter in group["params"]]
            for state in states:
                state["step"] += 1
            if self._torch is not None:
                self._torch.param_groups[number]["lr"] = group["lr"]
                for master, gradient in zip(masters, gradients, strict=True):
                    master.grad = gradient * scale
            else:
                moments = ([local(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq"))
                reference.adamw(
                    masters, None, gradients, *moments, step=int(states[0]["step"]), learning_rate=group["lr"],
                    betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"], gradient_scale=scale,
                )  # fmt: skip
        if self._torch is not None:
            self._torch.step()
        for parameter, master in self._masters.items():
            local(parameter.detach()).copy_(split_master(master)[0])


def train_one(config: TrainConfig, way: str) -> None:
    """Trains on this rank with the masters kept in one way."""
    if way not in ("split", "float32"):
        assembly.SplitAdamW = type(way, (WholeMasters,), {"way": way})  # type: ignore[misc]
    loop.train(config)


def run(config: TrainConfig, way: str, ranks: int) -> None:
    """Trains in fresh processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    config.output.parent.mkdir(parents=True, exist_ok=True)
    file = config.output.with_suffix(".json")
    write_text(file, json.dumps(config_values(config)))
    processes = []
    for rank in range(ranks):
        variables = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, __file__, "--worker", way, "--config", str(file), str(config.output)]
        processes.append(subprocess.Popen(command, env=environment))
    if any(process.wait() for process in processes):
        raise SystemExit(f"{way}: training failed")


def demo_config(demo: Path) -> TrainConfig:
    """The demo's continued pre-training with KL, of its adapted model."""
    paths = DemoPaths(demo)
    preset = read_toml(Path("demo-pretrain"))
    preset["data"]["train"] = {"russian": paths.shards("russian", "russian", "train")}
    return train_config({**preset, "model": paths.run(0, "adapted"), "output": demo}, "demo-pretrain")


def variant(config: TrainConfig, output: Path, way: str, steps: int, ranks: int) -> TrainConfig:
    """The run with its masters kept in one way: bf16, a checkpoint half-way, no validation."""
    batch = config.batch
    micro_batch = min(batch.micro_batch, batch.sequences_per_step // ranks)
    return dataclasses.replace(
        config,
        output=output,
        data=dataclasses.replace(config.data, validation={}),
        batch=dataclasses.replace(batch, micro_batch=micro_batch),
        optimizer=dataclasses.replace(config.optimizer, master="float32" if way == "float32" else "split"),
        runtime=dataclasses.replace(config.runtime, device="cpu", dtype="bfloat16", threads=1),
        schedule=dataclasses.replace(
            config.schedule, max_steps=steps, checkpoint_every=steps // 2, keep_checkpoints=2, validate_every=0
        ),
    )


def resume_half_way(split: Path, resumed: Path) -> None:
    """A run directory as a run killed after its half-way checkpoint leaves it."""
    resumed.mkdir()
    for name in ("config.json", "environment.json", METRICS):
        shutil.copyfile(split / name, resumed / name)
    checkpoint = complete_checkpoints(split / "checkpoints")[0]
    shutil.copytree(checkpoint, resumed / "checkpoints" / checkpoint.name)


def losses(run: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    return [(line["loss"], line["grad_norm"]) for line in read_lines(run / METRICS)]


def difference(a: Path, b: Path) -> float:
    """The largest relative difference of a step's loss."""
    return max(abs(x - y) / abs(y) for (x, _), (y, _) in zip(losses(a), losses(b), strict=True))


def equal_weights(a: Path, b: Path) -> bool:
    """Whether two runs end with the same model file."""
    return (a / "model" / "model.safetensors").read_bytes() == (b / "model" / "model.safetensors").read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory of the runs and of masters.json")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="output of `vikhr-fast demo`")
    parser.add_argument("--config", type=Path, help="JSON configuration to train instead of the demo's")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--ways", default=",".join(WAYS), help="which; split and whole are always trained")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2 or options.ranks < 1:
        parser.error("--steps must be 2 or more, --ranks 1 or more")
    if unknown := set(options.ways.split(",")) - set(WAYS):
        parser.error(f"--ways: no {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    if not options.worker and options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out}: not empty")
    if not options.config and not (options.demo / "seed-0" / "adapted").is_dir():
        parser.error(f"{options.demo}: no adapted model; `vikhr-fast demo` makes one, or give --demo or --config")
    config = (
        train_config(json.loads(options.config.read_text()), str(options.config))
        if options.config
        else demo_config(options.demo)
    )
    if options.worker:
        train_one(config, options.worker)
        return 0
    ways = [way for way in WAYS if way in ("split", "whole", *options.ways.split(","))]
    runs = {way: options.out / way for way in (*ways, "resumed")}
    for way in ways:
        run(variant(config, runs[way], way, options.steps, options.ranks), way, options.ranks)
    resume_half_way(runs["split"], runs["resumed"])
    run(variant(config, runs["resumed"], "split", options.steps, options.ranks), "split", options.ranks)
    equal = {
        name: losses(runs["split"]) == losses(runs[name]) and equal_weights(runs["split"], runs[name])
        for name in ("whole", "resumed")
    }
    results = {
        "steps": len(losses(runs["split"])),
        "ranks": options.ranks,
        "equal_bits_with_split": equal,
        "largest_relative_loss_difference": {
            f"{a}, {b}": difference(runs[a], runs[b])
            for a, b in (("split", "fused"), ("loop", "fused"), ("split", "float32"), ("fused", "float32"))
            if a in runs and b in runs
        },
        "made_with": environment(config.seed),
        "losses": {way: [loss for loss, _ in losses(path)] for way, path in runs.items()},
    }
    write_text(options.out / "masters.json", json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "losses"}, indent=2))
    return int(not all(equal.values()))


if __name__ == "__main__":
    sys.exit(main())
