"""Runs a few steps of each configuration and records what they called and held: `python record_steps.py CONFIG.json …`.

Beside each config, `recorded.json` holds from rank 0: losses and gradient norms of all steps, the collectives of the
last one as [kind, ranks, elements, bytes an element, times], and the most bytes that a kind of memory took at once,
under the plan's names for it.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from vikhr_fast.config import TrainConfig, train_config
from vikhr_fast.distributed.ranks import Ranks, process_group
from vikhr_fast.distributed.sharding import local, sharded_modules
from vikhr_fast.model.mistral import Mistral
from vikhr_fast.train.batches import step_batches
from vikhr_fast.train.inputs import open_inputs
from vikhr_fast.train.optimizer import MasterAdamW
from vikhr_fast.train.signals import Interruption
from vikhr_fast.train.split_adamw import SplitAdamW
from vikhr_fast.train.state import TrainState
from vikhr_fast.train.step import TrainStep

STEPS = 2
KINDS = {"allgather": "all-gather", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
         "allreduce": "all-reduce", "all_reduce": "all-reduce"}  # fmt: skip


class Collectives(TorchDispatchMode):
    """Counts what is called, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, int, int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # what it calls itself is counted
        name = func.name().partition("::")[2].strip("_")
        kind = next((kind for known, kind in KINDS.items() if name.startswith(known)), None)
        if func.namespace in ("c10d", "_c10d_functional") and kind:
            tensors = args[1] if kind == "reduce-scatter" else args[0]  # a gather's output, a reduction's input
            whole = tensors[0] if isinstance(tensors, list | tuple) else tensors
            self.calls[kind, _group(args).size(), whole.numel(), whole.element_size()] += 1
        return func(*args, **(kwargs or {}))


def _group(args: tuple[Any, ...]) -> dist.ProcessGroup:
    """The process group among a collective's arguments: boxed, or by its name."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
            return dist.ProcessGroup.unbox(argument)
        if isinstance(argument, str) and argument not in ("sum", "max"):
            return torch.distributed.distributed_c10d._resolve_process_group(argument)
    raise AssertionError(f"no process group in {args}")


class Memory:
    """The most bytes of what is gathered, and of gradients before their reduction, while its context lasts."""

    def __init__(self, models: list[Mistral]) -> None:
        self.most: Counter[str] = Counter()
        self._groups = [g for m in models for s in sharded_modules(m) for g in s._get_fsdp_state()._fsdp_param_groups]

    def gathered(self, results: list[Any]) -> None:
        results = [*results, *(group._all_gather_result for group in self._groups if group._all_gather_result)]
        results += [state.all_gather_result for state in self._states("all_gather_state") if state is not None]
        buffers = [result.all_gather_output for result in results]
        buffers += [buffer for group in self._groups for one in group.fsdp_params for buffer in _outputs(one)]
        self._saw("gathered parameters", buffers)

    def unreduced(self, reducing: list[Tensor], reduction_input: Tensor | None = None) -> None:
        gradients = list(reducing)
        for one in (one for group in self._groups for one in group.fsdp_params if hasattr(one, "_unsharded_param")):
            gradients += [x for x in (one.unsharded_accumulated_grad, one._unsharded_param.grad) if x is not None]
        if reduction_input is not None:
            gradients.append(reduction_input)
        for states in self._states("reduce_scatter_states"):
            gradients += [state.reduce_scatter_input for state in states]
        self._saw("gradients not yet reduced", gradients)

    def reduced(self, optimizer: MasterAdamW | SplitAdamW) -> None:
        split = isinstance(optimizer, SplitAdamW)
        self._saw(
            "gradients",
            [optimizer._gradients.of(p) for p in optimizer.state] if split else list(optimizer.gradients().values()),
        )

    def _states(self, name: str) -> list[Any]:
        """Of both models, where they have run."""
        contexts = {id(group.comm_ctx): group.comm_ctx for group in self._groups}.values()
        return [getattr(context, name) for context in contexts if hasattr(context, name)]

    def _saw(self, name: str, tensors: list[Tensor]) -> None:
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().size() for x in map(local, tensors)}
        self.most[name] = max(self.most[name], sum(storages.values()))


def _outputs(one: Any) -> list[Tensor]:
    return [buffer for buffer in getattr(one, "all_gather_outputs", []) if buffer.untyped_storage().size()]


@contextmanager
def watching(memory: Memory) -> Iterator[None]:
    """Looks at memory wherever FSDP2 gathers, copies out, adds up and copies in."""
    original = (
        _fsdp_param_group.foreach_all_gather,
        _fsdp_param_group.foreach_all_gather_copy_out,
        _fsdp_collectives.foreach_reduce_scatter_copy_in,
        FSDPParamGroup.post_backward,
    )

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            memory.gathered([] if result is None else [result])
            return result

        return wrapped

    def copy_in(gradients: list[Tensor], buffer: Tensor, world_size: int) -> None:
        memory.unreduced(gradients, buffer)
        original[2](gradients, buffer, world_size)

    def post_backward(self: FSDPParamGroup, *args: Any) -> None:
        memory.unreduced([])
        original[3](self, *args)
        memory.unreduced([])

    _fsdp_param_group.foreach_all_gather = after(original[0])
    _fsdp_param_group.foreach_all_gather_copy_out = after(original[1])
    _fsdp_collectives.foreach_reduce_scatter_copy_in = copy_in
    FSDPParamGroup.post_backward = post_backward  # type: ignore[method-assign]
    yield
    _fsdp_param_group.foreach_all_gather, _fsdp_param_group.foreach_all_gather_copy_out = original[:2]
    _fsdp_collectives.foreach_reduce_scatter_copy_in = original[2]
    FSDPParamGroup.post_backward = original[3]  # type: ignore[method-assign]


def resident(train_step: TrainStep) -> dict[str, int]:
    """Bytes of what lives from step to step."""
    optimizer, reference = train_step.optimizer, train_step.objective._reference

    def size(tensors: Any) -> int:
        return sum(local(tensor).nbytes for tensor in tensors)

    states = list(optimizer.state.values())
    found = {"moments": size(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))}
    if "remainder" in states[0]:
        found["remainders"] = size(state["remainder"] for state in states)
        found["parameters"] = size(optimizer.stored.values())
    else:
        found["master weights"] = size(optimizer.stored.values())
    if reference is not None:
        found["reference"] = size(reference.parameters())
    return found


def record(config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    config.output.mkdir(exist_ok=True)
    inputs = open_inputs(config, verify=False)
    train_step, state = TrainStep(config, inputs, ranks, Interruption()), TrainState()
    reference = train_step.objective._reference
    memory = Memory([train_step.model, *([] if reference is None else [reference])])
    losses, collectives = [], Collectives()
    update = train_step.optimizer.update

    def weighing_update(norm: Tensor, max_norm: float) -> None:
        memory.reduced(train_step.optimizer)
        update(norm, max_norm)

    train_step.optimizer.update = weighing_update  # type: ignore[method-assign]
    with watching(memory):
        for step, batches in zip(range(STEPS), step_batches(config, inputs, ranks, 0), strict=False):
            with collectives if step == STEPS - 1 else nullcontext():
                result = train_step(state, batches)
            state = state.after(result)
            losses.append((result.loss, result.ce, result.kl, result.grad_norm, result.reference_flops))
    calls = [[*call, times] for call, times in sorted(collectives.calls.items())]
    return {"losses": losses, "calls": calls, "memory": resident(train_step) | memory.most}


def main() -> None:
    configs = {path: train_config(json.loads(path.read_text()), str(path)) for path in map(Path, sys.argv[1:])}
    for replicas in sorted({config.runtime.replicas for config in configs.values()}):
        chosen = {path: config for path, config in configs.items() if config.runtime.replicas == replicas}
        with process_group(next(iter(chosen.values())).runtime) as ranks:
            for path, config in chosen.items():
                found = record(config, ranks)
                if ranks.is_main:
                    path.with_name("recorded.json").write_text(json.dumps(found))


main()
