"""What is measured: each kernel's inputs, its contestants, and the least work that it has to do."""

from typing import Any

import torch
import torch.nn.functional as F
from attention import attention_cases
from measuring import Case, Forward, Inputs, Run, Sizes, forward_and_backward
from torch import Tensor

import vikhr_kernels
from vikhr_kernels import Buckets


def _normal(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype)


def rms_norm_case(sizes: Sizes) -> Case:
    """With the residual addition: 8 tensors [N, H] through memory, forward and backward."""

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        x, residual, *upstream = (_normal(device, dtype, tokens, sizes.hidden) for _ in range(4))
        weight = _normal(device, dtype, sizes.hidden)
        return {
            "x": x.requires_grad_(), "weight": weight.requires_grad_(), "residual": residual.requires_grad_(),
            "upstream": upstream,
        }  # fmt: skip

    def by(operations: Any) -> Forward:
        return lambda i: operations.rms_norm(i["x"], i["weight"], 1e-5, i["residual"])

    def liger() -> Run:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

        return forward_and_backward(
            lambda i: LigerFusedAddRMSNormFunction.apply(i["x"], i["residual"], i["weight"], 1e-5, 0.0, "llama", False)
        )

    return Case(
        "rms_norm", make, by, sizes.tokens, {"liger": liger},
        traffic=lambda tokens: 8 * tokens * sizes.hidden * 2,
    )  # fmt: skip


def rope_case(sizes: Sizes) -> Case:
    """Queries and keys, read and written once each way; a peer is given its cosines and sines, and works in place."""

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        shapes = [(tokens, heads, sizes.head_size) for heads in (sizes.heads, sizes.key_heads)]
        positions = torch.arange(tokens, device=device) % 400
        exponents = torch.arange(sizes.head_size, device=device) % (sizes.head_size // 2) * 2 / sizes.head_size
        angles = positions[:, None] / 10000.0**exponents  # [tokens, head_size]
        return {
            "q": _normal(device, dtype, *shapes[0]).requires_grad_(),
            "k": _normal(device, dtype, *shapes[1]).requires_grad_(),
            "positions": positions,
            "cos": angles.cos().to(dtype),
            "sin": angles.sin().to(dtype),
            "upstream": [_normal(device, dtype, *shape) for shape in shapes],
        }

    def by(operations: Any) -> Forward:
        return lambda i: operations.rope(i["q"], i["k"], i["positions"], 10000.0)

    def liger() -> Run:
        from liger_kernel.ops.rope import LigerRopeFunction

        def forward(i: Inputs) -> tuple[Tensor, ...]:
            q, k = (i[name].unsqueeze(0).transpose(1, 2) for name in "qk")  # [1, heads, tokens, head_size]
            rotated = LigerRopeFunction.apply(q, k, i["cos"], i["sin"])
            return tuple(x.transpose(1, 2).squeeze(0) for x in rotated)

        return forward_and_backward(forward)

    width = (sizes.heads + sizes.key_heads) * sizes.head_size
    return Case(
        "rope", make, by, sizes.tokens, {"liger": liger},
        traffic=lambda tokens: 4 * tokens * width * 2,
    )  # fmt: skip


def swiglu_case(sizes: Sizes) -> Case:
    """Three tensors [N, F] forward, five backward."""

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        gate, up, upstream = (_normal(device, dtype, tokens, sizes.intermediate) for _ in range(3))
        return {"gate": gate.requires_grad_(), "up": up.requires_grad_(), "upstream": [upstream]}

    def by(operations: Any) -> Forward:
        return lambda i: operations.swiglu(i["gate"], i["up"])

    def liger() -> Run:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        # Its backward pass writes the gradients over the inputs: no copy that isn't its own is timed.
        return forward_and_backward(lambda i: LigerSiLUMulFunction.apply(i["gate"], i["up"]))

    return Case(
        "swiglu", make, by, sizes.tokens, {"liger": liger},
        traffic=lambda tokens: 8 * tokens * sizes.intermediate * 2,
    )  # fmt: skip


def scale_case(sizes: Sizes) -> Case:
    """A gradient summed in float32 into the dtype of its parameter: 4 bytes read and 2 written an element."""

    def make(thousands: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        x = _normal(device, torch.float32, 1000 * thousands)
        return {"out": torch.empty_like(x, dtype=dtype), "x": x, "factor": torch.tensor(1 / 3, device=device)}

    def by(operations: Any) -> Forward:
        def scale(inputs: Inputs) -> Tensor:
            operations.scale_into(**inputs, accumulate=False)
            return inputs["out"]

        return scale

    return Case(
        "scale", make, by, sizes.parameters,
        traffic=lambda thousands: 6 * 1000 * thousands, what="forward", axis="thousands of elements",
    )  # fmt: skip


def adamw_case(sizes: Sizes) -> Case:
    """bf16 gradients on split masters: 14 bytes read and 12 written a parameter."""

    def make(thousands: int, device: torch.device, dtype: torch.dtype) -> Inputs:  # noqa: ARG001  always bf16
        masters = [_normal(device, torch.float32, thousands * 125) for _ in range(8)]
        halves = [vikhr_kernels.split_master(master) for master in masters]
        return {
            "parameters": [upper for upper, _ in halves],
            "remainders": [lower for _, lower in halves],
            "gradients": [_normal(device, torch.bfloat16, thousands * 125) for _ in range(8)],
            "first_moments": [torch.zeros_like(master) for master in masters],
            "second_moments": [torch.zeros_like(master) for master in masters],
        }

    settings = {"learning_rate": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "step": 10}

    def by(operations: Any) -> Forward:
        def step(inputs: Inputs) -> tuple[Tensor, ...]:
            operations.adamw(**inputs, **settings)
            return tuple(inputs["parameters"] + inputs["remainders"])

        return step

    def fused() -> Run:
        def run(inputs: Inputs) -> tuple[Tensor, ...]:
            # float32 masters and gradients: 28 bytes a parameter where the split needs 26
            if "optimiser" not in inputs:
                parameters = [torch.nn.Parameter(moment.clone()) for moment in inputs["first_moments"]]
                for parameter, gradient in zip(parameters, inputs["gradients"], strict=True):
                    parameter.grad = gradient.float()
                inputs["optimiser"] = torch.optim.AdamW(parameters, fused=True)
            inputs["optimiser"].step()
            return ()

        return run

    return Case(
        "adamw", make, by, sizes.parameters, {"torch fused, fp32": fused},
        traffic=lambda thousands: 26 * 1000 * thousands, what="forward",
        axis="thousands of parameters",
    )  # fmt: skip


def loss_case(sizes: Sizes, *, with_reference: bool, with_buckets: bool = False) -> Case:
    """The loss head; its peers keep the head's gradient in bf16, ours in float32 until the end.

    With buckets the reference has a vocabulary of its own, larger by a fifth; nothing else computes that. Beside it is
    the head of one vocabulary, for what they cost.
    """
    ref_vocabulary = sizes.vocabulary * 6 // 5 if with_buckets else sizes.vocabulary

    def make(tokens: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        shape = (sizes.vocabulary, sizes.hidden)
        inputs: Inputs = {
            "hidden": _normal(device, dtype, tokens, sizes.hidden).requires_grad_(),
            "weight": _normal(device, dtype, *shape, scale=sizes.hidden**-0.5).requires_grad_(),
            "targets": torch.randint(sizes.vocabulary, (tokens,), device=device),
        }
        if with_reference:
            inputs["ref_hidden"] = (inputs["hidden"].detach() + _normal(device, dtype, tokens, sizes.hidden) * 0.1).to(
                dtype
            )
            inputs["ref_weight"] = inputs["weight"].detach().clone()
        if with_buckets:
            more = _normal(device, dtype, ref_vocabulary - sizes.vocabulary, sizes.hidden, scale=sizes.hidden**-0.5)
            inputs["ref_weight"] = torch.cat((inputs["ref_weight"], more))
            inputs["kl_buckets"] = _buckets(sizes.vocabulary, ref_vocabulary, sizes.vocabulary // 4).to(device)
        return inputs

    vectors = 2 if with_reference else 1  # CE and KL of each token

    def by(operations: Any) -> Forward:
        return lambda i: operations.linear_ce_kl(**i)[: 1 + vectors]

    def bare_gemms() -> Run:
        def run(inputs: Inputs) -> tuple[Tensor, ...]:
            with torch.no_grad():
                logits = inputs["hidden"] @ inputs["weight"].T
                if with_reference:
                    torch.mm(inputs["ref_hidden"], inputs["ref_weight"].T)
                return logits @ inputs["weight"], logits.T @ inputs["hidden"]

        return run

    def same_vocabulary() -> Run:
        def forward(i: Inputs) -> tuple[Tensor, ...]:
            given = {name: value for name, value in i.items() if name != "kl_buckets"}
            given["ref_weight"] = given["ref_weight"][: sizes.vocabulary]
            return vikhr_kernels.linear_ce_kl(**given)

        run = forward_and_backward(forward)
        return lambda inputs: run(inputs)[-2:]  # the gradients, of another loss: no error is asked of them

    def liger_jsd() -> Run:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=1.0, weight_soft_loss=1.0, beta=1.0, compiled=True)
        return forward_and_backward(
            lambda i: loss(i["hidden"], i["weight"], i["ref_hidden"], i["ref_weight"], i["targets"])
        )

    def orda() -> Run:
        from orda_kernel import SeparateTeacher, distillation_loss

        return forward_and_backward(
            lambda i: distillation_loss(
                i["hidden"], i["weight"], i["targets"], SeparateTeacher(i["ref_hidden"], i["ref_weight"]),
                kl_weight=1.0, kl_divergence="reverse",
            ).loss
        )  # fmt: skip

    def liger_ce() -> Run:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        return forward_and_backward(lambda i: loss(i["weight"], i["hidden"], i["targets"]))

    def torch_ce() -> Run:
        if not hasattr(F, "linear_cross_entropy"):
            raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
        options = torch.nn.LinearCrossEntropyOptions()
        return forward_and_backward(
            lambda i: F.linear_cross_entropy(i["hidden"], i["weight"], i["targets"], options=options)
        )

    def cut_ce() -> Run:
        from cut_cross_entropy import linear_cross_entropy

        return forward_and_backward(lambda i: linear_cross_entropy(i["hidden"], i["weight"], i["targets"]))

    name, peers = "linear_ce", {"torch": torch_ce, "liger": liger_ce, "cut": cut_ce}
    if with_reference:
        name, peers = "linear_ce_kl", {"liger": liger_jsd, "orda": orda}
    if with_buckets:
        name, peers = "linear_ce_kl_buckets", {"same vocabulary": same_vocabulary}
    pieces = 3 * sizes.vocabulary + (ref_vocabulary if with_reference else 0)  # of all products
    return Case(
        name, make, by, sizes.tokens, {"bare GEMMs": bare_gemms, **peers},
        flops=lambda tokens: 2 * tokens * sizes.hidden * pieces, vectors=vectors,
    )  # fmt: skip


def _buckets(pieces: int, ref_pieces: int, size: int) -> Buckets:
    """Random ones, some with many pieces; the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def bucket_of(count: int) -> Tensor:
        every = torch.cat((torch.arange(size), torch.randint(size, (count - size,), generator=generator)))
        return every[torch.randperm(count, generator=generator)]

    return Buckets.of(bucket_of(pieces), bucket_of(ref_pieces))


def all_cases(sizes: Sizes) -> dict[str, Case]:
    """Every case, by the name of its kernel; the most valuable first."""
    cases = [
        *attention_cases(sizes), loss_case(sizes, with_reference=True), loss_case(sizes, with_reference=False),
        loss_case(sizes, with_reference=True, with_buckets=True),
        rms_norm_case(sizes), rope_case(sizes), swiglu_case(sizes), scale_case(sizes), adamw_case(sizes),
    ]  # fmt: skip
    return {case.kernel: case for case in cases}
