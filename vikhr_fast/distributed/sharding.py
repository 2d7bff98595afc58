"""Where a model's tensors live: whole on a single rank, sharded by FSDP2 (`fully_shard`) on several.

What differs between the two is told apart here and in `gradients`; everything else takes either.
"""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vikhr_fast.config import RuntimeConfig
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.io.files import atomic_directory
from vikhr_fast.model.config import write_config
from vikhr_fast.model.mistral import Mistral, Operations
from vikhr_fast.model.weights import write_weights


def load_model(
    directory: Path,
    ranks: Ranks,
    *,
    ops: Operations,
    compute: torch.dtype,
    storage: torch.dtype | None = None,
    masters: dict[str, Tensor] | None = None,
    whole: bool = False,
    keep_gathered: bool = False,
) -> Mistral:
    """A model whose forward and backward compute in one dtype, read tensor by tensor.

    On several ranks embedding, each layer and the head are gathered apart. The head stays gathered from its forward,
    which makes its gradient, to its backward, which only scales that: one gather and one reduce-scatter a micro-batch.
    Tied to the embedding it is gathered in that one's forward, and reduced when the embedding's gradient is added.
    FSDP2 on one rank would copy every parameter three times a micro-batch and every gradient twice: there nothing is
    sharded, and weights that share an input are one product.

    Args:
        directory: Hugging Face directory.
        ranks: this process's place.
        ops: what the model runs on.
        compute: dtype of forward and backward.
        storage: dtype of the shards on several ranks, `compute` by default; a single rank stores what it computes with.
        masters: where given, filled with this rank's part of each value in float32 or, for float64, in that, by the
            parameters' names: the parameter's own memory where it is that wide.
        whole: each rank has all of it, as a single one has: for a model that isn't trained.
        keep_gathered: what a forward has gathered stays so until a backward that is told to free it (`set_collectives`)
            or `reshard`.
    """
    whole = whole or ranks.count == 1
    model, files = Mistral.without_values(directory, ops=ops, dtype=compute if whole else storage or compute)
    if not whole:
        _shard(model, ranks, compute, keep_gathered)
    model.to_empty(device=ranks.device)
    if whole:
        model.stack_weights()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()  # of the places where they lay apart
    for name, parameter in model.named_parameters():
        own = local(parameter.detach())
        wide = torch.promote_types(own.dtype, torch.float32)
        value = shard_of(files.read(name, own.dtype if masters is None else wide, ranks.device), parameter)
        own.copy_(value)
        if masters is not None:
            masters[name] = own if own.dtype == wide else value
    return model


def _shard(model: Mistral, ranks: Ranks, compute: torch.dtype, keep_gathered: bool) -> None:
    # Inputs keep their dtypes: hidden states have the compute dtype already, loss weights need their full precision.
    reduce = torch.promote_types(compute, torch.float32)
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce, cast_forward_inputs=False)
    head = model.head_module
    order = [model.model.embed_tokens, *model.model.layers]
    if not model.config.tie_word_embeddings:
        order.append(head)
    for module in (*order, model):  # the model itself has the final norm
        keeps = keep_gathered or module is head or module is model
        fully_shard(module, mesh=ranks.mesh, mp_policy=precision, reshard_after_forward=not keeps)
    for fsdp in sharded_modules(model):
        fsdp.set_gradient_divide_factor(1.0)  # the loss is normalised by the global token count already
        fsdp.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    # Each module is gathered while the one before it computes, forward and backward.
    embedding, *others = sharded = [module for module in order if isinstance(module, FSDPModule)]
    for earlier, later in pairwise(sharded):
        earlier.set_modules_to_forward_prefetch([later])
    for earlier, later in pairwise(others):
        later.set_modules_to_backward_prefetch([earlier])
    embedding.set_unshard_in_backward(False)  # its gradient doesn't depend on its values


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: its shard, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """What this rank has of a whole tensor that is laid out as a parameter."""
    if not isinstance(parameter, DTensor):
        return whole
    shards = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return shards.to_local().clone()  # or it might keep the whole


def laid_out_as(parameter: Tensor, shard: Tensor) -> Tensor:
    """This rank's part of a tensor as the whole tensor that it belongs to, laid out as a parameter is."""
    if not isinstance(parameter, DTensor):
        return shard
    return DTensor.from_local(
        shard, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def full(tensor: Tensor) -> Tensor:
    """The whole tensor; on several ranks all of them call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def set_collectives(model: Mistral, runtime: RuntimeConfig, is_last: bool) -> None:
    """What the backward of the next micro-batch does on several ranks; the last one of a step leaves all sharded.

    Replicas sum their gradients once a step, over the slower network, however often each sums its own.
    """
    if isinstance(model, FSDPModule):
        model.set_reshard_after_backward(is_last or not runtime.keep_gathered)
        model.set_requires_gradient_sync(is_last or runtime.reduce_each_micro_batch)
        model.set_requires_all_reduce(is_last)


def reshard(model: Mistral) -> None:
    """Frees what a forward without a backward leaves gathered: the head, and what belongs to no layer, or all."""
    for module in sharded_modules(model):
        module.reshard()


def sharded_modules(model: Mistral) -> Iterator[FSDPModule]:
    """What FSDP2 gathers one by one; nothing of a model on a single rank."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def save_model(model: Mistral, directory: Path, ranks: Ranks, dtype: torch.dtype, also: list[Path]) -> None:
    """Writes a model, sharded or not, as a Hugging Face directory from rank 0, one gathered tensor at a time.

    Args:
        model, directory, ranks: what, to where, and this process's place.
        dtype: to store the weights in.
        also: files to copy beside the weights.
    """
    parameters = dict(model.named_parameters())

    def gathered(name: str) -> Tensor:
        return full(parameters[name].detach())

    if ranks.is_main:
        with atomic_directory(directory) as temporary:
            write_config(temporary, model.config, dtype)
            shapes = {n: torch.empty(own.shape, dtype=dtype, device="meta") for n, own in parameters.items()}
            write_weights(temporary, shapes, gathered)
            for path in also:
                shutil.copyfile(path, temporary / path.name)
    else:
        for name in parameters:
            gathered(name)
    ranks.barrier()
