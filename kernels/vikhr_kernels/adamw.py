"""AdamW as a registered operation: many tensors a launch, on bf16 parameters with exact float32 masters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vikhr_kernels import reference
from vikhr_kernels.arguments import require, require_shape
from vikhr_kernels.dispatch import custom_op, runs_on_triton


def adamw(
    parameters: Sequence[Tensor],
    remainders: Sequence[Tensor] | None,
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    gradient_scale: float | Tensor = 1.0,
    rounding_seed: int = 0,
) -> None:
    """`reference.adamw` with its arguments, in one kernel launch; equal to it bit for bit, in place.

    Tensors are contiguous (a strided view would be stepped in a copy, so it is refused); under FSDP2 give the local
    shards.

    Raises:
        ValueError: an argument's length, shape, dtype or device doesn't fit; it is named.
    """
    lists = {
        "gradients": gradients,
        "first_moments": first_moments,
        "second_moments": second_moments,
        **({} if remainders is None else {"remainders": remainders}),
    }
    master = torch.float32 if remainders is not None else None
    for name, tensors in lists.items():
        require(len(tensors) == len(parameters), f"adamw: {len(tensors)} {name} for {len(parameters)} parameters")
    moments = first_moments[0].dtype if first_moments else master
    for index, parameter in enumerate(parameters):
        place = f"parameters[{index}]"
        if remainders is None:
            master = parameter.dtype
            require(
                master in (torch.float32, torch.float64) and master == parameters[0].dtype,
                f"adamw: {place} is {master}; without remainders all are float32 or all float64",
            )
        else:
            require(parameter.dtype == torch.bfloat16, f"adamw: {place} is {parameter.dtype}, not bfloat16")
        require(parameter.is_contiguous(), f"adamw: {place} is not contiguous")
        _require_place(place, parameter, parameters[0])
        for name, tensors in lists.items():
            tensor = tensors[index]
            place = f"{name}[{index}]"
            wanted = {"remainders": torch.int16, "gradients": gradients[0].dtype}.get(name, moments)
            require_shape("adamw", place, tensor, parameter.shape)
            require(tensor.dtype == wanted, f"adamw: {place} is {tensor.dtype}, not {wanted}")
            require(tensor.is_contiguous(), f"adamw: {place} is not contiguous")
            _require_place(place, tensor, parameters[0])
    if not parameters:
        return
    require(gradients[0].dtype.is_floating_point, f"adamw: gradients are {gradients[0].dtype}")
    require(moments in (master, torch.bfloat16), f"adamw: first_moments[0] is {moments}, not {master} or bfloat16")
    require(step >= 1, f"adamw: step is {step}; the first is 1")
    require(0 <= rounding_seed < 2**31, f"adamw: rounding_seed is {rounding_seed}, not from 0 to 2^31 - 1")
    if not isinstance(gradient_scale, Tensor):
        gradient_scale = torch.full((), gradient_scale, dtype=master, device=parameters[0].device)
    require(
        gradient_scale.shape == () and gradient_scale.dtype == master,
        f"adamw: gradient_scale must be a {master} scalar, not {gradient_scale.dtype} {list(gradient_scale.shape)}",
    )
    _require_place("gradient_scale", gradient_scale, parameters[0])
    _adamw(
        list(parameters),
        [] if remainders is None else list(remainders),
        list(gradients),
        list(first_moments),
        list(second_moments),
        gradient_scale,
        step,
        learning_rate,
        *betas,
        eps,
        weight_decay,
        rounding_seed,
    )


def _require_place(name: str, tensor: Tensor, parameter: Tensor) -> None:
    require(
        tensor.device == parameter.device, f"adamw: {name} is on {tensor.device}, parameters[0] on {parameter.device}"
    )


@custom_op("vikhr::adamw", mutates_args=("parameters", "remainders", "first_moments", "second_moments"))
def _adamw(
    parameters: list[Tensor],
    remainders: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    gradient_scale: Tensor,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    rounding_seed: int,
) -> None:
    if runs_on_triton(parameters[0]) and runs_on_triton(gradients[0]):
        from vikhr_kernels.gpu import adamw as gpu

        factors = reference.adamw_factors(step, learning_rate, (beta1, beta2), weight_decay)
        gpu.step(
            parameters, remainders, gradients, first_moments, second_moments, gradient_scale,
            rounding_seed=rounding_seed, eps=eps, **factors,
        )  # fmt: skip
        return
    reference.adamw(
        parameters,
        remainders or None,
        gradients,
        first_moments,
        second_moments,
        step=step,
        learning_rate=learning_rate,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        gradient_scale=gradient_scale,
        rounding_seed=rounding_seed,
    )


@_adamw.register_fake
def _(*_: object) -> None:
    return None
