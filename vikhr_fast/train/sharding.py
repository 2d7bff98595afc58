"""Models under FSDP2 (`fully_shard`): one code path from a single CPU process to many GPUs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vikhr_fast.files import atomic_directory
from vikhr_fast.model import Mistral, Operations
from vikhr_fast.model_config import read_config, write_config
from vikhr_fast.ranks import Ranks
from vikhr_fast.train.float8 import FLOAT8, quantise, replace_linears
from vikhr_fast.weights import MAX_SHARD_BYTES, WeightFiles, write_weights
from vikhr_kernels import split_master


def load_sharded(
    directory: Path,
    ranks: Ranks,
    *,
    ops: Operations,
    compute: torch.dtype,
    storage: torch.dtype,
    remainders: dict[str, Tensor] | None = None,
    float8: bool = False,
) -> Mistral:
    """A model with its parameters sharded over the ranks, read tensor by tensor.

    Embedding, each layer and the head are gathered apart. The head stays gathered from its forward, which makes
    its gradient, to its backward, which only scales that: one gather and one reduce-scatter a micro-batch.

    Args:
        directory: Hugging Face directory.
        ranks: this process's place.
        ops: what the model runs on.
        compute: dtype of forward and backward.
        storage: dtype of the sharded parameters, and of their gradients' reduction unless it is bfloat16.
        remainders: where given, filled with what bf16 parameters lack of the float32 values, see
            `vikhr_kernels.split_master`: int16 local shards by the parameters' names.
        float8: the layers' products in float8, see `Float8Linear`; for a model that stays frozen.
    """
    read_as = storage if remainders is None else torch.float32
    model = Mistral(read_config(directory), ops=ops, device="meta", dtype=storage)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if float8:
        replace_linears(model)
    # Inputs keep their dtypes: hidden states have the compute dtype already, loss weights need their full precision.
    gather_as = compute if storage != compute else None  # None leaves float8 as it is
    precision = MixedPrecisionPolicy(param_dtype=gather_as, reduce_dtype=read_as, cast_forward_inputs=False)
    for module in (model.model.embed_tokens, *model.model.layers):
        fully_shard(module, mesh=ranks.mesh, mp_policy=precision)
    fully_shard(model.lm_head, mesh=ranks.mesh, mp_policy=precision, reshard_after_forward=False)
    fully_shard(model, mesh=ranks.mesh, mp_policy=precision)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is normalised by the global token count already
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    model.to_empty(device=ranks.device)
    files = WeightFiles(directory)
    files.require(shapes)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in shapes:
            whole = files.read(name, read_as, ranks.device)
            if parameters[name].dtype == FLOAT8:
                whole, scale = quantise(whole)
                _fill(parameters[name.removesuffix("weight") + "scale"], scale)
            remainder = _fill(parameters[name], whole, split=remainders is not None)
            if remainders is not None and remainder is not None:
                remainders[name] = remainder
    return model


def _fill(parameter: Tensor, whole: Tensor, split: bool = False) -> Tensor | None:
    """Sets this rank's shard of a parameter; split, to the upper half of a master, whose remainder is returned."""
    assert isinstance(parameter, DTensor)
    value = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    remainder = None
    if split:
        value, remainder = split_master(value)
    parameter.to_local().copy_(value)
    return remainder


def fsdp_module(model: Mistral) -> FSDPModule:
    """The model as what `fully_shard` made of it."""
    assert isinstance(model, FSDPModule)
    return model


def reshard(model: Mistral) -> None:
    """Frees what a forward without a backward leaves gathered: the head, and what belongs to no layer."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def save_gathered(model: Mistral, directory: Path, ranks: Ranks, dtype: torch.dtype, also: list[Path]) -> None:
    """Writes a sharded model as a Hugging Face directory from rank 0, one gathered tensor at a time.

    Args:
        model: the sharded model.
        directory: to be made.
        ranks: this process's place.
        dtype: to store the weights in.
        also: files to copy beside the weights.
    """

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            assert isinstance(value, DTensor)
            yield name, value.full_tensor().to(dtype=dtype, device="cpu")

    if ranks.is_main:
        with atomic_directory(directory) as temporary:
            write_config(temporary, model.config, dtype)
            write_weights(temporary, gathered(), MAX_SHARD_BYTES)
            for path in also:
                shutil.copyfile(path, temporary / path.name)
    else:
        for _ in gathered():
            pass
    ranks.barrier()
