"""What a run trains with: the models, the objective and the optimiser that its configuration asks for."""

import torch
from torch import Tensor

import vikhr_kernels
from vikhr_fast.config import TrainConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import load_model
from vikhr_fast.model.mistral import Mistral, Operations
from vikhr_fast.train.inputs import Inputs
from vikhr_fast.train.objective import Objective
from vikhr_fast.train.optimizer import MasterAdamW, Optimizer
from vikhr_fast.train.reference import Reference
from vikhr_fast.train.split_adamw import SplitAdamW
from vikhr_kernels import Buckets, cpu, reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def assemble(config: TrainConfig, inputs: Inputs, ranks: Ranks) -> tuple[Mistral, Objective, Optimizer]:
    """Loads the model and its reference, and makes the rest, as before the first step."""
    compute = DTYPES[config.runtime.dtype]
    ops = _operations(config, ranks)
    split = config.optimizer.master == "split"
    masters: dict[str, Tensor] = {}
    storage = compute if split else torch.promote_types(compute, torch.float32)
    model = load_model(
        config.model, ranks, ops=ops, compute=compute, storage=storage, masters=masters,
        keep_gathered=config.runtime.keep_gathered,
    )  # fmt: skip
    model.set_checkpointing(config.runtime.checkpointing)
    frozen = None
    if config.kl.needs_reference:  # as it was before the first step, resumed or not
        frozen = load_model(
            config.kl.reference or config.model, ranks, ops=ops, compute=compute, whole=config.runtime.whole_reference
        ).requires_grad_(False)
    support, buckets = _compared(inputs.reference, ranks.device)
    objective = Objective(
        config.kl, model, frozen, sources=list(inputs.train), support=support, buckets=buckets,
        chunk_tokens=config.runtime.chunk_tokens or None, length=inputs.length,
    )  # fmt: skip
    return model, objective, (SplitAdamW if split else MasterAdamW)(model, masters, config.optimizer, ranks)


def _compared(reference: Reference | None, device: torch.device) -> tuple[Tensor | None, Buckets | None]:
    """What the KL is restricted to, and the buckets of two vocabularies."""
    if reference is None:
        return None, None
    support = None if reference.support is None else torch.tensor(reference.support, device=device)
    if (reader := reference.reader) is None:
        return support, None
    return support, Buckets.of(*(torch.from_numpy(side.buckets) for side in (reader.own, reader.ref))).to(device)


def _operations(config: TrainConfig, ranks: Ranks) -> Operations:
    """What the models run on; the loss head, whose chunks are the same either way, is told too."""
    vikhr_kernels.allow_triton(config.kernels != "eager")
    if ranks.device.type == "cpu":
        return cpu
    return reference if config.kernels == "eager" else vikhr_kernels
