"""The mutation gate: changes one thing in the kernels at a time and checks that a test notices.

    python tests/gates/mutate.py [--only TEXT] [--again]

Each mutation is made in a copy of `kernels/` and `tests/kernels/`, and the tests named beside it are run there in
Triton's interpreter. A mutation that no test kills is a hole in the tests: exit code 1. PyTorch and Triton are
imported once; every run is a fork of that process.
A run in which all are killed takes a quarter of an hour, and leaves a hash of sources and versions in
`mutations.sha256`; as long as that is theirs, the next run ends at once, but with `--again`.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("mutations.sha256")
SECONDS = 300  # a mutation may loop for ever


@dataclass(frozen=True)
class Mutation:
    """`old` is replaced by `new` in a file of vikhr_kernels, where it must stand exactly once."""

    file: str
    old: str
    new: str
    tests: str  # file in tests/kernels, and what -k selects there

    @property
    def title(self) -> str:
        return f"{self.file}: {self.old.strip()!r} -> {self.new.strip()!r}"


LOSS, NORM, ROPE, SWIGLU = (f"gpu/{name}.py" for name in ("loss_rows", "rms_norm", "rope", "swiglu"))
LOSS_TESTS = "interpreter/test_loss_rows.py"
NORM_TESTS = "interpreter/test_rms_norm.py"
ROPE_TESTS = "interpreter/test_rope.py"
SWIGLU_TESTS = "interpreter/test_swiglu.py"
SCALE, SCALE_TESTS = "gpu/scale.py", "interpreter/test_scale.py"
ADAMW_TESTS = "interpreter/test_adamw.py"
ATTENTION, GRADIENTS, TILES = (f"gpu/{name}.py" for name in ("flash_attention", "flash_attention_backward", "tiles"))
PACKED = "packed_documents.py"
ATTENTION_TESTS = "interpreter/test_flash_attention.py as_right and float32"
LENGTH_TESTS, ORDER_TESTS = (
    f"interpreter/test_flash_attention.py {name}" for name in ("whole_rows", "own_tiles and float32-80-64")
)
HEAD_TESTS = f"{LOSS_TESTS} the_head"
IGNORED_TESTS = "interpreter/test_ignored_tokens.py"
FAKES_TESTS = "interpreter/test_fakes.py"
POOL, POOL_TESTS = "gpu/pool_rows.py", "interpreter/test_pool_rows.py"
BUCKETS, BUCKETS_TESTS = "buckets.py", "test_buckets.py"
BUCKET_ROWS_TESTS = f"{LOSS_TESTS} buckets"
HEAD_BLOCKS = "test_linear_ce_kl.py blocks"

MUTATIONS = [
    # The row step of the loss head
    Mutation(LOSS, "tl.where(grows, b_exponential, 1.0)", "b_exponential", LOSS_TESTS),
    Mutation(LOSS, "tl.where(grows, 1.0, b_exponential)", "b_exponential", LOSS_TESTS),
    Mutation(POOL, "tl.constexpr(-3.0e38)", "tl.constexpr(0.0)", LOSS_TESTS),
    Mutation(LOSS, "b_sum = 1 / 24 - b_x", "b_sum = 1 / 24 + b_x", LOSS_TESTS),
    Mutation(LOSS, "_SERIES_LIMIT = tl.constexpr(1.0)", "_SERIES_LIMIT = tl.constexpr(0.0)", f"{LOSS_TESTS} small_kl"),
    Mutation(LOSS, "_SERIES_LIMIT = tl.constexpr(1.0)", "_SERIES_LIMIT = tl.constexpr(100.0)", LOSS_TESTS),
    Mutation(LOSS, "ce = (largest - tl.load(p_logits + target)) + tl.log(total)",
             "ce = (largest + tl.load(p_logits + target)) + tl.log(total)", LOSS_TESTS),
    Mutation(LOSS, "(2 * z_coefficient, log_partition)", "(z_coefficient, log_partition)", LOSS_TESTS),
    Mutation(LOSS, "b_softmax - 1, b_softmax", "b_softmax, b_softmax", LOSS_TESTS),
    Mutation(LOSS, "(blocks - 1 - i_step) * BLOCK", "i_step * BLOCK", f"{LOSS_TESTS} narrow"),
    Mutation(LOSS, "blocks = tl.cdiv(V, BLOCK)", "blocks = V // BLOCK", LOSS_TESTS),
    Mutation(LOSS, "b_p * (b_difference - mean_difference)", "b_p * b_log_ratio", LOSS_TESTS),
    Mutation(LOSS, "b_weighted = b_weighted * b_factor +", "b_weighted = b_weighted +", LOSS_TESTS),
    Mutation(LOSS, "b_remainder - b_p * b_log_ratio", "b_remainder + b_p * b_log_ratio", LOSS_TESTS),
    Mutation(LOSS, "b_p * (b_log_ratio - 1) + b_q)", "b_p * b_log_ratio)", LOSS_TESTS),
    Mutation(LOSS, "+ (tl.log(p_sum) - tl.log(q_sum))", "", LOSS_TESTS),
    Mutation(LOSS, "tl.exp(b_z - p_largest) * p_share, 0.0)", "tl.exp(b_z - largest) * p_share, 0.0)",
             f"{LOSS_TESTS} support"),
    Mutation(LOSS, "b_gradient + kl_coefficient * b_kl_gradient", "b_gradient + b_kl_gradient", LOSS_TESTS),
    Mutation(LOSS, "(z_slope, log_partition) / 2", "(z_slope, log_partition)", LOSS_TESTS),
    Mutation(LOSS, "tl.where(factor != 0, factor * x, 0.0)", "factor * x", f"{IGNORED_TESTS} kernel"),
    Mutation(LOSS, "tl.where(counts, b_gradient, 0.0)", "b_gradient", f"{IGNORED_TESTS} kernel"),
    Mutation(LOSS, "tl.where(has_kl, b_gradient + kl_coefficient * b_kl_gradient, b_gradient)",
             "b_gradient + kl_coefficient * b_kl_gradient", f"{IGNORED_TESTS} kernel and kl_of_weight_0"),
    Mutation(LOSS, "logits.dtype)[:, -vocabulary:]", "logits.dtype)[:, :vocabulary]", f"{LOSS_TESTS} narrow"),
    # Buckets of two vocabularies
    Mutation(POOL, "b_largest_after > b_largest", "b_largest_after < b_largest", POOL_TESTS),
    Mutation(POOL, "-tl.abs(b_largest - b_largest_after)", "b_largest - b_largest_after", POOL_TESTS),
    Mutation(POOL, "b_sum + b_sum_after * b_exponential)", "b_sum + b_sum_after)", POOL_TESTS),
    Mutation(POOL, "tl.where(begins, b_largest_after, tl.maximum(b_largest, b_largest_after))",
             "tl.maximum(b_largest, b_largest_after)", POOL_TESTS),
    Mutation(POOL, "tl.where(begins, b_sum_after, b_joined)", "b_joined", POOL_TESTS),
    Mutation(POOL, "return b_begins | b_begins_after", "return b_begins_after", POOL_TESTS),
    Mutation(POOL, "p_pooled += i_row * K", "p_pooled += 0", POOL_TESTS),
    Mutation(POOL, "tl.load(p_order + o_v, mask=m_v, other=0)", "o_v", POOL_TESTS),
    Mutation(POOL, "mask=o_v + 1 < V, other=K)", "mask=o_v + 1 < V, other=K - 1)", POOL_TESTS),
    Mutation(POOL, "b_bucket != b_previous", "o_block == 0", POOL_TESTS),
    Mutation(POOL, "b_zeros + carried_sum", "b_zeros", POOL_TESTS),
    Mutation(POOL, "is_last, b_largest, LOWEST", "is_last, b_largest, 0.0", POOL_TESTS),
    Mutation(POOL, "tl.where(is_last, b_sum, 0.0)", "b_sum", POOL_TESTS),
    Mutation(POOL, "b_sum, 1.0)), b_sum)", "b_sum, 1.0)), 0.0)", f"{POOL_TESTS} bits"),
    Mutation(LOSS, "p_pooled += i_row * K", "p_pooled += 0", BUCKET_ROWS_TESTS),
    Mutation(LOSS, "p_pooled_gradient += i_row * K", "p_pooled_gradient += 0", BUCKET_ROWS_TESTS),
    Mutation(LOSS, "tl.load(p_bucket + o_v,", "tl.load(p_bucket + o_block,", BUCKET_ROWS_TESTS),
    Mutation(LOSS, "b_share * tl.load(p_pooled_gradient + o_k)", "tl.load(p_pooled_gradient + o_k)", BUCKET_ROWS_TESTS),
    Mutation(LOSS, "(nothing, kl_coefficient, nothing)", "(kl_coefficient, kl_coefficient, nothing)",
             BUCKET_ROWS_TESTS),
    Mutation(LOSS, "(nothing, kl_coefficient, nothing)", "(nothing, torch.ones_like(kl), nothing)", BUCKET_ROWS_TESTS),
    Mutation(LOSS, "pooled_gradient = ref_pooled", "pooled_gradient = pooled", BUCKET_ROWS_TESTS),
    Mutation(LOSS, "losses.add_(losses_of_kl)", "pass", BUCKET_ROWS_TESTS),
    Mutation(BUCKETS, "argsort(stable=True)", "argsort(stable=True, descending=True)", BUCKETS_TESTS),
    Mutation(BUCKETS, "bucket[order].int()", "bucket.int()", BUCKETS_TESTS),
    Mutation(BUCKETS, "(bounds.new_zeros(1), bounds)", "(bounds[:1], bounds)", BUCKETS_TESTS),
    Mutation(BUCKETS, "by_bucket.sub_(largest[self.sorted_bucket])", "by_bucket", BUCKETS_TESTS),
    Mutation(BUCKETS, ".log_().add_(largest)", ".log_()", BUCKETS_TESTS),
    Mutation(BUCKETS, "torch.maximum(own.max(), ref.max())", "own.max()", f"{BUCKETS_TESTS} wrong"),
    Mutation(BUCKETS, "bool((bucket >= 0).all())", "True", f"{BUCKETS_TESTS} wrong"),
    Mutation(BUCKETS, "bool((held > 0).all())", "True", f"{BUCKETS_TESTS} wrong"),
    Mutation(BUCKETS, "bucket.dim() == 1 and", "", f"{BUCKETS_TESTS} wrong"),
    Mutation(BUCKETS, "tensor.to(device) for", "tensor for", f"{BUCKETS_TESTS} wrong"),
    Mutation("linear_ce_kl.py", "2 * kl_buckets.size", "kl_buckets.size", f"{BUCKETS_TESTS} chunks"),
    Mutation("linear_ce_kl.py", "len(kl_buckets.ref.bucket)", "len(kl_buckets.own.bucket)", BUCKETS_TESTS),
    Mutation("linear_ce_kl.py", "require(kl_support is None,", "require(True,", f"{BUCKETS_TESTS} wrong"),
    Mutation("linear_ce_kl.py", "require(ref_hidden is not None,", "require(True,", f"{BUCKETS_TESTS} wrong"),
    Mutation("linear_ce_kl.py", "require(device == hidden.device,", "require(True,", f"{BUCKETS_TESTS} wrong"),
    Mutation("linear_ce_kl.py", "(logits - pooled[:, bucket]).exp_()", "p.clone()", BUCKETS_TESTS),
    Mutation("linear_ce_kl.py", ".mul_(pooled_gradient[:, bucket])", "", BUCKETS_TESTS),
    Mutation("linear_ce_kl.py", "Partition(*buckets[4:])", "Partition(*buckets[:4])", BUCKETS_TESTS),
    Mutation("linear_ce_kl.py", "[*[None] * 7, [None] * len(ctx.settings[0]), *[None] * 3]", "[None] * 10",
             BUCKETS_TESTS),
    Mutation("reference.py", "(logits - largest[:, bucket]).exp()", "logits.exp()", BUCKETS_TESTS),
    Mutation("reference.py", "return largest + torch", "return torch", BUCKETS_TESTS),
    Mutation("reference.py", "pooled(log_p, kl_buckets.own), pooled(log_q, kl_buckets.ref)",
             "pooled(log_p, kl_buckets.own).detach(), pooled(log_q, kl_buckets.ref)", BUCKETS_TESTS),
    # The chunked head
    Mutation("linear_ce_kl.py", "beta=int(start > 0)", "beta=0", HEAD_TESTS),
    Mutation("linear_ce_kl.py", "beta=int(start > 0)", "beta=1", HEAD_TESTS),
    Mutation("linear_ce_kl.py", "ce.detach().where(kept, 0)", "ce.detach()", HEAD_TESTS),
    Mutation("linear_ce_kl.py", "masked_product(c, d_losses) for", "c for", HEAD_TESTS),
    # What has no influence
    Mutation("linear_ce_kl.py", "masked_product(c, d_losses) for", "c * d_losses for",
             f"{IGNORED_TESTS} eager and ignored"),
    Mutation("linear_ce_kl.py", "torch.where(counted[rows], hidden[rows], zero, out=d_hidden[rows])", "hidden[rows]",
             f"{IGNORED_TESTS} eager"),
    Mutation("linear_ce_kl.py", "_clear_rows(kl_gradient, kl_coefficient == 0)", "pass", f"{IGNORED_TESTS} eager"),
    Mutation("linear_ce_kl.py", "_clear_rows(gradient, (ce", "(gradient, (ce", f"{IGNORED_TESTS} eager"),
    Mutation("linear_ce_kl.py", "log_partition), alpha=0.5)", "log_partition))", "test_linear_ce_kl.py plain_formula"),
    Mutation("reference.py", "(factor * x).where(factor != 0, 0)", "factor * x", f"{IGNORED_TESTS} eager"),
    Mutation("reference.py", "(factor * weight).to(dtype).where(kept, 0)", "(factor * weight).to(dtype)",
             f"{IGNORED_TESTS} eager"),
    Mutation("reference.py", "kept & (divisor != 0)", "kept", f"{IGNORED_TESTS} no_tokens"),
    Mutation("reference.py", "(hidden.where(counted, 0) @ weight.T)", "(hidden @ weight.T)",
             f"{IGNORED_TESTS} reference"),
    Mutation("reference.py", ".where(counted, (hidden @ weight.T).detach())", "", f"{IGNORED_TESTS} reference"),
    Mutation("reference.py", "logits.where((kl_factor != 0)[:, None], logits.detach())", "logits",
             f"{IGNORED_TESTS} reference"),
    # Autocast
    Mutation("dispatch.py", "with torch._C._DisableAutocast():", "with contextlib.nullcontext():",
             f"{FAKES_TESTS} eager and flash_attention"),
    Mutation("linear.py", " or torch.is_autocast_enabled(x.device.type)", "", "test_operations.py autocast"),
    Mutation("adamw.py", " and runs_on_triton(gradients[0])", "", f"{FAKES_TESTS} adamw"),
    Mutation("linear_ce_kl.py", "dtype=wide, device=hidden.device)", "dtype=hidden.dtype, device=hidden.device)",
             "test_linear_ce_kl.py float32_whatever"),
    Mutation("linear_ce_kl.py", "            gradient[block] = made", "            gradient = made", HEAD_BLOCKS),
    Mutation("linear_ce_kl.py", "else x[block] for x in", "else x[: len(logits[block])] for x in", HEAD_BLOCKS),
    # Products of linear layers, and the sums of their gradients
    Mutation("linear.py", "d_x.addmm_(d_output, weight)", "torch.mm(d_output, weight)", "test_linear.py"),
    Mutation("layout.py", "tensor.data_ptr() != next_one or", "", "test_linear.py"),
    Mutation("layout.py", "all(x.stride() == (sum(sizes), 1) for x in columns) and", "", "test_linear.py"),
    Mutation("linear.py", "elif any(wants_weights[index] for index in group)", "else", "test_linear.py"),
    Mutation("linear.py", "ctx.sums[index].add(d_weight)", "pass", "test_linear.py"),
    Mutation("gradient_sum.py", "total.index_add_(0, indices, rows)", "total[indices] += rows", "test_linear.py"),
    Mutation("embedding.py", "ctx.vocabulary, -1, False", "ctx.vocabulary, 0, False", "test_linear.py"),
    Mutation("gradient_sum.py", "self._total.zero_()", "pass", "test_linear.py"),
    Mutation("gradient_sum.py", "a.split([len(one._total) for one in sums])", "[a] * len(sums)", "test_linear.py"),
    Mutation("gradient_sum.py", "multiply_into(whole, a, b, beta=0 if sums[0].is_empty else 1)",
             "multiply_into(whole, a, b, beta=1)", "test_linear.py"),
    Mutation("gradient_sum.py", "rows, b, beta=0 if one.is_empty else 1", "rows, b, beta=1", "test_linear.py"),
    Mutation("linear_ce_kl.py", ".copysign_(log_ratio)", "", "test_linear_ce_kl.py plain_formula"),
    Mutation("linear_ce_kl.py", "mul_(torch.maximum(p, q))", "mul_(p)", "test_linear_ce_kl.py plain_formula"),
    Mutation("linear_ce_kl.py", "(p, largest, log_sum) if kl_support is None else None", "(p, largest, log_sum)",
             "test_linear_ce_kl.py plain_formula"),
    Mutation("linear_ce_kl.py", "ctx.sum.add(d_weight)", "pass", "test_linear.py"),
    # RMSNorm
    Mutation(NORM, "scale = tl.rsqrt(tl.sum(b_x * b_x, 0) / H + eps)",
             "scale = tl.rsqrt(tl.sum(b_x * b_x, 0) / BLOCK + eps)", NORM_TESTS),
    Mutation(NORM, "tl.sum(b_x * b_x, 0) / H + eps", "tl.sum(b_x * b_x, 0) / H", f"{NORM_TESTS} float16"),
    Mutation(NORM, "b_x = b_sum.to(tl.float32)", "b_x = b_x", NORM_TESTS),
    Mutation(NORM, "b_upstream - b_normalised * mean", "b_upstream + b_normalised * mean", NORM_TESTS),
    Mutation(NORM, "b_upstream *= b_weight", "b_upstream *= 1", NORM_TESTS),
    Mutation(NORM, "tl.minimum(first + rows_per_program, N)", "first + rows_per_program", NORM_TESTS),
    Mutation(NORM, "b_partial += ", "b_partial = ", NORM_TESTS),
    Mutation(NORM, "m_tile = (o_p[:, None] < P)", "m_tile = (o_p[:, None] < P - 1)", NORM_TESTS),
    Mutation(NORM, "partial = weight.new_empty(programs, width, dtype=torch.float32)",
             "partial = weight.new_empty(programs, width)", NORM_TESTS),
    Mutation("rms_norm.py", "d_summed if ctx.has_residual else None, summed", "None, summed", NORM_TESTS),
    # Rotary embedding
    Mutation(ROPE, "b_first * b_cos - b_second * b_sin", "b_first * b_cos + b_second * b_sin", ROPE_TESTS),
    Mutation(ROPE, "b_sin = -b_sin", "b_sin = b_sin", ROPE_TESTS),
    Mutation(ROPE, "p_k += i_token * stride_k_token", "p_k += i_token * stride_q_token", ROPE_TESTS),
    Mutation(ROPE, "(o_head < HEADS) & (o_half < HALF)", "(o_head < HEADS) & (o_half < HALF - 1)", ROPE_TESTS),
    Mutation("rope.py", "x if x.stride(-1) == 1 else x.contiguous()", "x", ROPE_TESTS),
    Mutation("rope.py", "x if x.stride(-1) == 1 else x.contiguous()", "x.contiguous()", ROPE_TESTS),
    Mutation("rope.py", "device=device) / half)", "device=device) / (2 * half))", ROPE_TESTS),
    # SwiGLU
    Mutation(SWIGLU, "(1 + b_gate * (1 - b_sigmoid))", "(1 + b_gate * b_sigmoid)", SWIGLU_TESTS),
    Mutation(SWIGLU, "b_d_output * b_gate * b_sigmoid", "b_d_output * b_sigmoid", SWIGLU_TESTS),
    Mutation(SWIGLU, "gate.stride(0), up.stride(0)", "gate.stride(0), gate.stride(0)", f"{SWIGLU_TESTS} slices"),
    Mutation(SWIGLU, "for x in (d_output, gate, up))", "for x in (d_output, up, gate))", f"{SWIGLU_TESTS} slices"),
    Mutation(SWIGLU, "p_d_output + i_row * stride_d_output", "p_d_output + i_row * size", f"{SWIGLU_TESTS} slices"),
    Mutation(SWIGLU, "i_row * (2 * size)", "i_row * size", SWIGLU_TESTS),
    Mutation(SWIGLU, "rows if rows.stride(1) == 1 else rows.contiguous()", "rows", SWIGLU_TESTS),
    Mutation(SWIGLU, "rows if rows.stride(1) == 1 else rows.contiguous()", "rows.contiguous()", SWIGLU_TESTS),
    Mutation("swiglu.py", "upstream * x, sigmoid", "upstream, sigmoid", "test_operations.py equals_the_reference"),
    # Flash attention, forward
    Mutation(ATTENTION, "o_key <= (o_query - key)[:, None]", "o_key < (o_query - key)[:, None]", ATTENTION_TESTS),
    Mutation(ATTENTION, "((b_first - key)[:, None] <= o_key)", "((b_first - key)[:, None] < o_key)", ATTENTION_TESTS),
    Mutation(ATTENTION, "scale_parts(b_out, b_decay, PARTS)", "b_out", ATTENTION_TESTS),
    Mutation(ATTENTION, "b_sum * b_decay + tl.sum(b_p, 1)", "b_sum + tl.sum(b_p, 1)", ATTENTION_TESTS),
    Mutation(ATTENTION, "b_largest + tl.log2(b_sum) / scale", "b_largest + tl.log2(b_sum)", ATTENTION_TESTS),
    Mutation(ATTENTION, "tl.constexpr(-1.0e30)", 'tl.constexpr(float("-inf"))', ATTENTION_TESTS),
    Mutation(ATTENTION, "tl.constexpr(-1.0e30)", "tl.constexpr(0.0)", f"{ATTENTION_TESTS} or sharp"),
    Mutation(ATTENTION, "tl.cdiv(tl.load(p_first + last), KEYS) * KEYS", "tl.load(p_first + last) // KEYS * KEYS",
             ATTENTION_TESTS),
    Mutation(ATTENTION, "tl.load(p_first + start) // KEYS * KEYS", "(tl.load(p_first + start) // KEYS + 1) * KEYS",
             ATTENTION_TESTS),
    Mutation(ATTENTION, "for key in range(common, diagonal, KEYS)", "for key in range(common + KEYS, diagonal, KEYS)",
             ATTENTION_TESTS),
    Mutation(ATTENTION, "tl.cdiv(last + 1 - diagonal, KEYS)", "tl.cdiv(last - diagonal, KEYS)", ATTENTION_TESTS),
    Mutation(TILES, "column + D // 2, T, stride, ROWS", "column, T, stride, ROWS", ATTENTION_TESTS),
    Mutation(TILES, "parts[1] * b_factor[:, None])", "parts[1])", ATTENTION_TESTS),
    Mutation(TILES, "tl.dot(left[1], tl.trans(right[1])", "tl.dot(left[1], tl.trans(right[0])", ATTENTION_TESTS),
    Mutation(TILES, "tl.dot(b_left, right[1], sums[1]", "tl.dot(b_left, right[1], sums[0]", ATTENTION_TESTS),
    Mutation(TILES, "+ i * (D // PARTS)", "+ i", ATTENTION_TESTS),
    Mutation(ATTENTION, "i_head // GROUP * head_k", "i_head * head_k", ATTENTION_TESTS),
    Mutation(ATTENTION, "softmax_scale * LOG2_E", "softmax_scale", ATTENTION_TESTS),
    Mutation(TILES, "element == 1 and apart", "element == 1", "interpreter/test_flash_attention.py copied"),
    # Its gradients
    Mutation(GRADIENTS, "((b_first - key)[:, None] <= o_key)", "((b_first - key)[:, None] < o_key)", ATTENTION_TESTS),
    Mutation(GRADIENTS, "o_key <= (o_query - key)[:, None]", "o_key < (o_query - key)[:, None]", ATTENTION_TESTS),
    Mutation(GRADIENTS, "((o_key - query)[:, None] <= o_query[None, :])",
             "((o_key - query)[:, None] < o_query[None, :])", ATTENTION_TESTS),
    Mutation(GRADIENTS, "o_query[None, :] < (b_end - query)[:, None]", "o_query[None, :] <= (b_end - query)[:, None]",
             ATTENTION_TESTS),
    Mutation(GRADIENTS, "b_zeros, PARTS) - b_delta[None, :]", "b_zeros, PARTS)", ATTENTION_TESTS),
    Mutation(GRADIENTS, "b_zeros - b_delta[None, :]", "b_zeros", ATTENTION_TESTS),
    Mutation(GRADIENTS, "scale - (b_lse * scale)[None, :]", "scale", ATTENTION_TESTS),
    Mutation(GRADIENTS, "b_zeros - b_lse[None, :]", "b_zeros", ATTENTION_TESTS),
    Mutation(GRADIENTS, "b_p * (b_d_p - b_delta[:, None])", "b_p * b_d_p", ATTENTION_TESTS),
    Mutation(GRADIENTS, "torch.zeros_like(lse)", "torch.empty_like(lse)", ATTENTION_TESTS),
    Mutation(GRADIENTS, "tl.cdiv(last, QUERIES) * QUERIES", "last // QUERIES * QUERIES", ATTENTION_TESTS),
    Mutation(GRADIENTS, "tl.load(p_end + start) // QUERIES * QUERIES",
             "tl.cdiv(tl.load(p_end + start), QUERIES) * QUERIES", ATTENTION_TESTS),
    Mutation(GRADIENTS, "i_key_head * GROUP + i // all_", "i_key_head * GROUP", ATTENTION_TESTS),
    Mutation(GRADIENTS, "i_key_head * GROUP + i // some", "i_key_head + i // some", ATTENTION_TESTS),
    Mutation(GRADIENTS, "b_d_k, softmax_scale, D", "b_d_k, scale, D", ATTENTION_TESTS),
    Mutation(GRADIENTS, "b_d_q, softmax_scale, D", "b_d_q, scale, D", ATTENTION_TESTS),
    Mutation(GRADIENTS, "+ i * (D // PARTS)", "+ i", ATTENTION_TESTS),
    Mutation(GRADIENTS, "tl.load(p_order + i_tile // TILES)", "tl.load(p_order + i_tile % TILES)", ORDER_TESTS),
    Mutation(GRADIENTS, "+ i_tile % TILES) * KEYS", ") * KEYS", ATTENTION_TESTS),
    # What it knows of documents
    Mutation(PACKED, "argsort(descending=True)", "argsort()", "test_packed_documents.py"),
    Mutation(PACKED, "end[starts[1:] - 1]", "end[starts[:-1]]", "test_packed_documents.py"),
    Mutation(PACKED, "(distances.argsort(descending=True), starts[-1:] // BLOCK)",
             "(starts[-1:] // BLOCK, distances.argsort(descending=True))", ORDER_TESTS),
    Mutation(PACKED, "min(self.window or self.tokens, max(self.tokens, 1))", "self.tokens", ATTENTION_TESTS),
    Mutation(PACKED, "token - self.positions_seen + 1", "token - self.positions_seen", ATTENTION_TESTS),
    Mutation(PACKED, ", right=True)", ")", ATTENTION_TESTS),
    Mutation("flash_attention.py", "seen_pairs(tokens, window)", "seen_pairs(tokens)", LENGTH_TESTS),
    Mutation("flash_attention.py", "count * tokens, window, length)", "count * tokens, window)", LENGTH_TESTS),
    Mutation(ATTENTION, "tl.cdiv(T, QUERIES) - 1", "T // QUERIES", ATTENTION_TESTS),
    Mutation("flash_attention.py", "(p * d_p).sum(-1, keepdim=True)", "0", "test_operations.py equals_the_reference"),
    # Scaling
    Mutation(SCALE, "b_scaled += tl", "b_scaled = tl", f"{SCALE_TESTS} adds"),
    Mutation(SCALE, ".to(tl.float32) * tl.load(p_factor)", " * tl.load(p_factor).to(p_x.dtype.element_ty)",
             SCALE_TESTS),
    Mutation(SCALE, "triton.cdiv(x.numel(), chosen.block)", "x.numel() // chosen.block", SCALE_TESTS),
    Mutation("linear_ce_kl.py", "scale_into(scaled, x, factor", "scale_into(scaled, x, factor / factor",
             "test_linear_ce_kl.py divided"),
    Mutation("reference.py", "out.addcmul_(x, factor)", "out.add_(x)", "test_operations.py scaling"),
    # AdamW
    Mutation("gpu/adamw.py", "b_bits + 0x8000", "b_bits + 0x7FFF", ADAMW_TESTS),
    Mutation("gpu/adamw.py", "tl.where(b_master == b_master, b_bits, 0x7FC00000)", "b_bits", f"{ADAMW_TESTS} extremes"),
    Mutation("gpu/adamw.py", "b_first * step_size, b_root", "b_first, b_root", ADAMW_TESTS),
    Mutation("gpu/adamw.py", "tl.sqrt_rn(b_second), second_correction) + eps",
             "tl.sqrt_rn(b_second), second_correction)", ADAMW_TESTS),
    Mutation("gpu/adamw.py", "b_gradient * second_rate * b_gradient", "b_gradient * b_gradient * second_rate",
             ADAMW_TESTS),
    Mutation("gpu/adamw.py", "b_master * decay +", "b_master +", ADAMW_TESTS),
    Mutation("gpu/adamw.py", "if start < end:", "if start + 1 < end:", ADAMW_TESTS),
    Mutation("gpu/adamw.py", "b_bits + b_random.to(tl.int32)", "b_bits", ADAMW_TESTS),
    Mutation("gpu/adamw.py", "o_x.to(tl.uint32) ^ key", "o_x.to(tl.uint32)", ADAMW_TESTS),
    Mutation("gpu/adamw.py", "tl.where(b_x == b_x, b_x.to(tl.int32, bitcast=True), 0x7FC00000)",
             "b_x.to(tl.int32, bitcast=True)", f"{ADAMW_TESTS} extremes"),
    Mutation("reference.py", "((bits + random.to(torch.int32)) >> 16)", "((bits + 0x8000) >> 16)",
             "test_adamw.py moments"),
    Mutation("reference.py", "(bits + 0x8000) >> 16", "bits >> 16", "test_adamw.py ties"),
]  # fmt: skip


def run_tests(directory: Path, tests: str) -> bool:
    """Whether tests are selected and pass on the copy of the package in `directory`, in a fork of this process."""
    child = os.fork()
    if child == 0:
        file, _, selection = tests.partition(" ")
        # An editable installation's finder would go before the path.
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
        sys.path.insert(0, str(directory / "kernels"))
        os.environ["TRITON_INTERPRET"] = str(int(file.startswith("interpreter/")))  # the others test the eager path
        os.chdir(directory)
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
        code = 3  # pytest's for an internal error
        with contextlib.suppress(BaseException):
            import pytest

            import vikhr_kernels

            assert Path(vikhr_kernels.__file__).is_relative_to(directory)
            arguments = [f"tests/kernels/{file}", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            arguments.append("--hypothesis-seed=0")  # what is killed once is killed again
            code = int(pytest.main([*arguments, *(["-k", selection] if selection else [])]))
        os._exit(code)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def fingerprint() -> str:
    """A hash of the kernels, their tests, pytest's settings, the mutations, and PyTorch's and Triton's versions."""
    folders = (ROOT / "kernels" / "vikhr_kernels", ROOT / "tests" / "kernels")
    sources = (file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in (".py", ".json"))
    files = [Path(__file__).resolve(), ROOT / "pyproject.toml", *sources]
    digest = hashlib.sha256(f"torch {version('torch').partition('+')[0]} triton {version('triton')}".encode())
    for file in files:
        digest.update(f"\n{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def copy_tree(directory: Path) -> Path:
    """A copy of what the tests need, to be mutated: a subdirectory for each process."""
    copy = directory / str(os.getpid())
    if not copy.exists():
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "kernels" / "vikhr_kernels", copy / "kernels" / "vikhr_kernels", ignore=ignore)
        shutil.copytree(ROOT / "tests" / "kernels", copy / "tests" / "kernels", ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def passes_unmutated(directory: Path, tests: str) -> bool:
    """Whether the tests pass as things are."""
    return run_tests(copy_tree(directory), tests)


def survives(directory: Path, mutation: Mutation) -> tuple[bool, float]:
    """Whether the mutation's tests pass with it, and the seconds that it took to know."""
    copy = copy_tree(directory)
    file = copy / "kernels" / "vikhr_kernels" / mutation.file
    source = file.read_text(encoding="utf-8")
    file.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    started = time.monotonic()
    survived = run_tests(copy, mutation.tests)
    file.write_text(source, encoding="utf-8")
    return survived, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description="The mutation gate of the kernels.")
    parser.add_argument("--only", default="", help="mutations whose title holds this text")
    parser.add_argument("--again", action="store_true", help="even where all were killed in the same sources before")
    options = parser.parse_args()
    mutations = [mutation for mutation in MUTATIONS if options.only in mutation.title]
    for mutation in mutations:
        source = (ROOT / "kernels" / "vikhr_kernels" / mutation.file).read_text(encoding="utf-8")
        if source.count(mutation.old) != 1:
            print(f"{mutation.title}: stands there {source.count(mutation.old)} times, not once")
            return 1
    tried, recorded = fingerprint(), RECORD.read_text().strip() if RECORD.exists() else ""
    if recorded == tried and not (options.only or options.again):
        print(f"all {len(mutations)} mutations were killed in these sources before ({RECORD.relative_to(ROOT)})")
        return 0
    import torch
    import triton  # noqa: F401  imported once, for all forks

    with contextlib.redirect_stdout(io.StringIO()):
        import pytest  # noqa: F401

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # imports much at its first call
    torch.use_deterministic_algorithms(False)
    survivors = 0
    jobs = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("fork").Pool(jobs) as pool:
        directory = Path(name).resolve()
        selections = sorted({mutation.tests for mutation in mutations})
        passed = pool.map(functools.partial(passes_unmutated, directory), selections, chunksize=1)
        if not all(passed):
            print(f"the tests fail without any mutation: {selections[passed.index(False)]}")
            return 1
        results = pool.imap(functools.partial(survives, directory), mutations)
        for number, (mutation, (survived, seconds)) in enumerate(zip(mutations, results, strict=True), 1):
            verdict = "SURVIVED" if survived else "killed"
            print(f"{number:3}/{len(mutations)} {verdict:8} {seconds:5.1f} s  {mutation.title}", flush=True)
            survivors += survived
    print(f"{len(mutations) - survivors} of {len(mutations)} mutations killed")
    if survivors:
        RECORD.unlink(missing_ok=True)
    elif not options.only and recorded != tried == fingerprint():  # and nothing was edited meanwhile
        RECORD.write_text(f"{tried}\n")
        print(f"{RECORD.relative_to(ROOT)} is new: commit it")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
