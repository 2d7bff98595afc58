"""Who makes a micro-batch of training, CE + KL against a frozen model: this package, and transformers' Mistral."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attention import varlen
from torch import Tensor, nn

import vikhr_kernels
from vikhr_fast.config import KLConfig
from vikhr_fast.data.packing import IGNORED, Batch
from vikhr_fast.distributed.ranks import Ranks
from vikhr_fast.distributed.sharding import load_model
from vikhr_fast.model.mistral import Checkpointing
from vikhr_fast.train.gradients import LocalGradients
from vikhr_fast.train.objective import Objective

MicroBatch = Callable[[Batch], Tensor]  # adds to the gradients, and returns the loss
Make = Callable[[Checkpointing], "Contestant"]


@dataclass(frozen=True)
class Contestant:
    """A model in training, its frozen reference, and what makes gradients of a batch."""

    student: nn.Module
    frozen: nn.Module
    run: MicroBatch
    sums: LocalGradients | None = None
    """Where its gradients are added; None: autograd's own, in the parameters' dtype."""

    def gradients(self) -> dict[str, Tensor]:
        """By Hugging Face's names."""
        named = self.student.named_parameters()
        if self.sums is not None:
            return {name: self.sums.of(x) for name, x in named}
        return {name: x.grad for name, x in named if x.grad is not None}

    def forget_gradients(self) -> None:
        """The next run begins anew."""
        self.student.zero_grad(set_to_none=True)
        if self.sums is not None:
            self.sums.clear()

    @property
    def resident_bytes(self) -> int:
        """Of both models' parameters, and of the sums."""
        parameters = (*self.student.parameters(), *self.frozen.parameters())
        return sum(x.nbytes for x in parameters) + (self.sums.num_bytes if self.sums else 0)


def contestants(student: Path, reference: Path, ranks: Ranks, dtype: torch.dtype, length: int) -> dict[str, Make]:
    """All of them, by name, of the same weights; `length` tokens are a sequence, which no document crosses."""
    peer = Transformers(student, reference, ranks.device, dtype, length)
    name = "transformers + Liger" if peer.liger else "transformers"
    return {
        "ours": lambda again: ours(student, reference, ranks, dtype, again),
        f"{name}, dense mask": lambda again: peer.contestant(again, "sdpa", dense_rows),
        f"{name}, varlen": lambda again: peer.contestant(again, "varlen", packed_row),
    }


def ours(student: Path, reference: Path, ranks: Ranks, dtype: torch.dtype, checkpointing: Checkpointing) -> Contestant:
    """This package's micro-batch, as the trainer runs it on one rank, its gradients added up in float32 or wider."""
    ops = vikhr_kernels if ranks.device.type == "cuda" else vikhr_kernels.cpu
    model, frozen = (load_model(directory, ranks, ops=ops, compute=dtype) for directory in (student, reference))
    model.set_checkpointing(checkpointing)
    objective = Objective(KLConfig(), model, frozen.requires_grad_(False), sources=["random"])

    def run(batch: Batch) -> Tensor:
        num_tokens = (batch.targets != IGNORED).sum()
        for on_device, compared in objective.with_reference([batch]):
            loss, _ = objective(on_device, compared, num_tokens=num_tokens, weights=(1.0, 1.0))
            loss.backward()
        return loss.detach()

    return Contestant(model, frozen, run, LocalGradients(model, torch.promote_types(dtype, torch.float32)))


def dense_rows(batch: Batch, length: int) -> dict[str, Tensor]:
    """A row a sequence, and the mask of what each token sees: nothing of another document."""
    documents = torch.repeat_interleave(batch.cu_seqlens.diff(), output_size=len(batch.tokens)).view(-1, length)
    mask = (documents[:, :, None] == documents[:, None, :]).tril()
    return {
        "input_ids": batch.tokens.view(-1, length), "position_ids": _positions(batch).view(-1, length),
        "attention_mask": mask[:, None],
    }  # fmt: skip


def packed_row(batch: Batch, length: int) -> dict[str, Any]:
    """All sequences in one row, and where its documents begin."""
    return {
        "input_ids": batch.tokens[None], "position_ids": _positions(batch)[None],
        "cu_seq_lens_q": batch.cu_seqlens, "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": length, "max_length_k": length,
    }  # fmt: skip


def _positions(batch: Batch) -> Tensor:
    starts = batch.cu_seqlens[:-1].repeat_interleave(batch.cu_seqlens.diff(), output_size=len(batch.tokens))
    return torch.arange(len(batch.tokens), device=starts.device) - starts


def varlen_attention(
    module: nn.Module,  # noqa: ARG001  transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """PyTorch's FlashAttention-2 on packed documents, on a CPU a loop: [1, heads, T, size] -> [1, T, heads, size]."""
    if query.is_cuda:
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        return varlen(q, k, v, cu_seq_lens_q, max_length_q, (-1, 0)).unsqueeze(0), None
    attended = [
        F.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in (query, key, value)), is_causal=True, enable_gqa=True
        )
        for start, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(attended, 2).transpose(1, 2), None


@dataclass(frozen=True)
class Transformers:
    """Hugging Face's Mistral, on a GPU with Liger's kernels; loaded once, whatever attends."""

    student: Path
    reference: Path
    device: torch.device
    dtype: torch.dtype
    length: int

    @property
    def liger(self) -> bool:
        """Whether its kernels run here."""
        return self.device.type == "cuda"

    @cached_property
    def models(self) -> tuple[nn.Module, nn.Module]:
        """The model and its reference."""
        from transformers import AttentionInterface, AutoModelForCausalLM

        AttentionInterface.register("varlen", varlen_attention)
        if self.liger:
            from liger_kernel.transformers import apply_liger_kernel_to_mistral

            apply_liger_kernel_to_mistral(
                rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
            )
        student, frozen = (
            AutoModelForCausalLM.from_pretrained(directory, dtype=self.dtype).to(self.device)
            for directory in (self.student, self.reference)
        )
        return student.train(), frozen.eval().requires_grad_(False)

    def contestant(
        self, checkpointing: Checkpointing, attention: str, inputs: Callable[[Batch, int], dict[str, Any]]
    ) -> Contestant:
        """A micro-batch by an attention of transformers', its inputs made of the batch each time."""
        student, frozen = self.models
        if checkpointing != "none":
            student.gradient_checkpointing_enable({"use_reentrant": False})

        def logits(model: nn.Module, given: dict[str, Any]) -> Tensor:
            model.config._attn_implementation = attention  # which its layers look up at every call
            return model(**given, use_cache=False).logits.flatten(0, 1).float()

        def run(batch: Batch) -> Tensor:
            given = inputs(batch, self.length)
            with torch.no_grad():
                reference = logits(frozen, given)
            loss = ce_and_kl(logits(student, given), reference, batch.targets)
            loss.backward()
            return loss.detach()

        return Contestant(student, frozen, run)


def ce_and_kl(logits: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
    """The loss in plain PyTorch, [T, V] -> []: means over the tokens that have a target."""
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    kept = targets != IGNORED
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return F.cross_entropy(logits, targets) + (divergence * kept).sum() / kept.sum()
