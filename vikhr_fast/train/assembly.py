"""What a run trains with: the sharded models, the objective and the optimiser that its configuration asks for."""

from typing import NamedTuple

import torch
from torch import Tensor

import vikhr_kernels
from vikhr_fast.config import TrainConfig
from vikhr_fast.model import Mistral, Operations
from vikhr_fast.objective import Objective
from vikhr_fast.ranks import Ranks
from vikhr_fast.train.inputs import Inputs, has_reference
from vikhr_fast.train.optimizer import MasterAdamW, build_optimizer
from vikhr_fast.train.sharding import load_sharded
from vikhr_fast.train.split_adamw import SplitAdamW
from vikhr_kernels import reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Assembled(NamedTuple):
    """As before the first step."""

    model: Mistral
    objective: Objective
    optimizer: MasterAdamW | SplitAdamW


def assemble(config: TrainConfig, inputs: Inputs, ranks: Ranks) -> Assembled:
    """Loads the model and its reference, and makes the rest."""
    compute = DTYPES[config.runtime.dtype]
    master = torch.float64 if compute == torch.float64 else torch.float32
    ops = _operations(config, ranks)
    split = config.optimizer.master == "split"
    remainders: dict[str, Tensor] = {}
    model = load_sharded(
        config.model,
        ranks,
        ops=ops,
        compute=compute,
        storage=compute if split else master,
        remainders=remainders if split else None,
    )
    model.set_checkpointing(config.runtime.checkpointing)
    frozen = None
    if has_reference(config):  # as it was before the first step, resumed or not
        path = config.kl.reference or config.model
        frozen = load_sharded(
            path, ranks, ops=ops, compute=compute, storage=compute, float8=config.runtime.float8_reference
        ).requires_grad_(False)
    if config.runtime.compile:
        for one in filter(None, (model, frozen)):
            one.compile_layers()
    objective = Objective(
        config.kl,
        model,
        frozen,
        sources=list(inputs.train),
        support=None if inputs.support is None else torch.tensor(inputs.support, device=ranks.device),
        chunk_tokens=config.runtime.chunk_tokens or None,
    )
    optimizer = (
        SplitAdamW(model, remainders, config.optimizer, ranks) if split else build_optimizer(model, config.optimizer)
    )
    return Assembled(model, objective, optimizer)


def _operations(config: TrainConfig, ranks: Ranks) -> Operations:
    """What the models run on; the loss head, whose chunks are the same either way, is told too.

    Compiled layers need registered operations, eager ones inside where there are no kernels: their reference looks into
    `cu_seqlens`.
    """
    on_gpu = ranks.device.type == "cuda"
    vikhr_kernels.allow_triton(config.kernels != "eager")
    return vikhr_kernels if config.runtime.compile or (on_gpu and config.kernels != "eager") else reference
