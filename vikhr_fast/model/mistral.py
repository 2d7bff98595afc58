"""Mistral (arXiv 2310.06825) by hand: RMSNorm, rotary embeddings, grouped-query attention, SwiGLU, untied or tied head.

Parameters are named as in Hugging Face checkpoints. Inside, a batch is one row of T tokens, its documents one
after another; `cu_seqlens` says where each begins.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import vikhr_kernels
from vikhr_fast.io.files import atomic_directory
from vikhr_fast.model.config import ModelConfig, read_config, write_config
from vikhr_fast.model.key_value_cache import KeyValueCache
from vikhr_fast.model.weights import MAX_SHARD_BYTES, WeightFiles, write_weights
from vikhr_kernels import Length, PackedDocuments, embedding, length_of, linear, reference, seen_pairs, stack

__all__ = ["Head", "Mistral", "ModelConfig", "Operations"]


class Operations(Protocol):
    """The operations a model runs on: `vikhr_kernels.reference`, or anything with the same functions."""

    @overload
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
    @overload
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def rope(self, q: Tensor, k: Tensor, positions: Tensor, theta: float) -> tuple[Tensor, Tensor]: ...  # noqa: D102
    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor: ...  # noqa: D102
    def flash_attention(self, q: Tensor, k: Tensor, v: Tensor, *, documents: PackedDocuments) -> Tensor: ...  # noqa: D102


Context = PackedDocuments | KeyValueCache  # what tokens attend to
Checkpointing = Literal["none", "selective", "full"]
# What selective checkpointing keeps of a layer: attention alone costs more to compute again than to keep.
_SAVED = [torch.ops.vikhr.flash_attention.default]
_CHUNK = 1024  # tokens of each row that `Mistral.extend` takes at once: their scores with all before them exist at once

# Modules keep the functions they use and not `ops` itself: a model is deep-copied to make its frozen reference,
# and a Python module cannot be.


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learnt scale, [T, H] -> [T, H]; see `add` for the residual stream."""

    def __init__(self, size: int, eps: float, ops: Operations) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.rms_norm = ops.rms_norm

    def forward(self, hidden: Tensor) -> Tensor:
        return self.rms_norm(hidden, self.weight, self.eps)

    def add(self, branch: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised sum, and the sum: one operation."""
        return self.rms_norm(branch, self.weight, self.eps, residual)


class Attention(nn.Module):
    """Causal grouped-query attention inside each document: [T, H] -> [T, H].

    Of its linear layers the weights alone are used, by `vikhr_kernels.linear`; so it is in the MLP.
    """

    def __init__(self, config: ModelConfig, ops: Operations) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.rope = ops.rope
        self.flash_attention = ops.flash_attention

    def forward(self, hidden: Tensor, positions: Tensor, context: Context) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in linear(hidden, *self.sharing_input()))
        q, k = self.rope(q, k, positions, self.rope_theta)
        v = v.contiguous()  # or what is kept for backward would be the whole product that it is a slice of
        if isinstance(context, KeyValueCache):
            attended = context.attend(self, q, k, v)
        else:
            attended = self.flash_attention(q, k, v, documents=context)
        (output,) = linear(attended.flatten(-2), self.o_proj.weight)
        return output

    def sharing_input(self) -> list[Tensor]:
        """The weights that are multiplied with the same hidden states."""
        return [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]


class MLP(nn.Module):
    """The gated feed-forward network: [T, H] -> [T, H]."""

    def __init__(self, config: ModelConfig, ops: Operations) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.swiglu = ops.swiglu

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = linear(hidden, *self.sharing_input())
        (output,) = linear(self.swiglu(gate, up), self.down_proj.weight)
        return output

    def sharing_input(self) -> list[Tensor]:
        """The weights that are multiplied with the same hidden states."""
        return [self.gate_proj.weight, self.up_proj.weight]


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward network, each on a normalised input and added to the residual stream.

    The addition at a layer's end is fused into the norm that begins the next one: between layers the stream [T, H] is
    two summands, the last branch and the rest.
    """

    def __init__(self, config: ModelConfig, ops: Operations) -> None:
        super().__init__()
        self.self_attn = Attention(config, ops)
        self.mlp = MLP(config, ops)
        self.checkpointing: Checkpointing = "none"
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)

    def forward(
        self, branch: Tensor, residual: Tensor | None, positions: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self._compute(branch, residual, positions, context)
        hidden = branch if residual is None else branch + residual  # one tensor to keep instead of two
        # Inside the module: FSDP2's own hooks then run once a pass, not again when the layer is computed again.
        saved = _SAVED if self.checkpointing == "selective" else []
        computed: tuple[Tensor, Tensor] = checkpoint(
            self._compute, hidden, None, positions, context, use_reentrant=False, preserve_rng_state=False,
            context_fn=partial(create_selective_checkpoint_contexts, saved),
        )  # fmt: skip
        return computed

    def _compute(
        self, branch: Tensor, residual: Tensor | None, positions: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        if residual is None:  # the first layer's input has no second summand
            normalised, hidden = self.input_layernorm(branch), branch
        else:
            normalised, hidden = self.input_layernorm.add(branch, residual)
        attended: Tensor = self.self_attn(normalised, positions, context)
        normalised, hidden = self.post_attention_layernorm.add(attended, hidden)
        transformed: Tensor = self.mlp(normalised)
        return transformed, hidden


class Embedding(nn.Embedding):
    """The vectors of tokens: [T] -> [T, H].

    Where the head is tied, its weight, sharded, stays gathered from its forward on: `Mistral.head` reads it, too.
    """

    def reset_parameters(self) -> None:
        """Nothing: `Mistral.initialise` draws them. To draw normal values on "meta" is seconds of imports."""

    def forward(self, tokens: Tensor) -> Tensor:
        return embedding(tokens, self.weight)


class Decoder(nn.Module):
    """Embedding, layers and final norm: tokens [T] -> hidden [T, H]."""

    def __init__(self, config: ModelConfig, ops: Operations) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, ops) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)

    def forward(self, tokens: Tensor, positions: Tensor, context: Context) -> Tensor:
        branch, residual = self.embed_tokens(tokens), None
        for layer in self.layers:
            branch, residual = layer(branch, residual, positions, context)
        assert residual is not None
        normalised, _ = self.norm.add(branch, residual)
        return normalised


class Head(nn.Module):
    """The LM head, alone in its module: a sharded weight may be read only inside its own module's forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, hidden: Tensor, **loss_arguments: Any) -> Any:
        """Logits [..., V] of hidden [..., H]; or, given any loss arguments, the result of `linear_ce_kl`."""
        return _predicted(hidden, self.weight, **loss_arguments)


def _predicted(hidden: Tensor, weight: Tensor, **loss_arguments: Any) -> Any:
    """What `Head` gives, of any weight [V, H]."""
    if loss_arguments:
        return vikhr_kernels.linear_ce_kl(hidden, weight, **loss_arguments)
    return F.linear(hidden, weight)


class Mistral(nn.Module):
    """A Mistral causal language model; parameters have the names of `transformers.MistralForCausalLM`.

    There is no `lm_head` where the embedding matrix is the head: `head` serves both.

    Args:
        config: its shape.
        ops: the operations it runs on.
        device: where the parameters live; on "meta" they stay without values.
        dtype: of the parameters.
        seed: of the initial values, see `initialise`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        ops: Operations = reference,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):  # the layers' own initialisation then costs nothing
            self.model = Decoder(config, ops)
            if not config.tie_word_embeddings:
                self.lm_head = Head(config)
        self.to(dtype)
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Sets norm scales to 1 and draws every matrix from a normal of deviation `config.initializer_range`.

        The values depend on the seed and the shapes alone: they are drawn in float32 on the CPU, whatever the
        dtype and device of the parameters.
        """
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)
            else:
                drawn = torch.empty(parameter.shape, dtype=torch.float32)
                parameter.copy_(drawn.normal_(0, self.config.initializer_range, generator=generator))

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor | None = None,
        length: Length = "short",
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Final hidden states, to be given to `logits` or to `head`.

        Args:
            tokens: [B, S] int64, one document a row; or, with `cu_seqlens`, [T] packed documents.
            cu_seqlens: [documents + 1] int32 cumulative document lengths, from 0 to T.
            length: of packed documents, see `vikhr_kernels.PackedDocuments`; rows have theirs.
            cache: what came before in each row, to which the tokens are added; see `extend`.

        Returns:
            [B, S, H] or [T, H].
        """
        if tokens.dim() != (2 if cu_seqlens is None else 1):
            raise ValueError(f"tokens must be [B, S], or [T] with cu_seqlens; they are {list(tokens.shape)}")
        window = self.config.sliding_window
        if cache is not None:
            hidden: Tensor = self.model(tokens.flatten(), cache.advance(tokens.shape[1], window, tokens.device), cache)
            return hidden.view(*tokens.shape, -1)
        if cu_seqlens is None:
            rows, size = tokens.shape
            cu_seqlens = torch.arange(rows + 1, dtype=torch.int32, device=tokens.device) * size
            length = length_of(seen_pairs(size, window) / max(size, 1))
        positions = document_positions(cu_seqlens, tokens.numel())
        hidden = self.model(tokens.flatten(), positions, PackedDocuments.of(cu_seqlens, tokens.numel(), window, length))
        return hidden if tokens.dim() == 1 else hidden.view(*tokens.shape, -1)  # FSDP2 warns where it gets a view

    @torch.no_grad()
    def extend(self, rows: Sequence[list[int]], cache: KeyValueCache) -> list[Tensor]:
        """Final hidden states [tokens, H] of each row's next tokens, of which it may have none.

        Shorter rows are filled up, which nothing depends on.
        """
        cache.expect([len(row) for row in rows])
        longest, weight = max(map(len, rows)), self.head_module.weight
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64).to(weight.device)
        hidden = [weight.new_zeros((len(rows), 0, self.config.hidden_size))]
        hidden += [self(tokens[:, at : at + _CHUNK], cache=cache) for at in range(0, longest, _CHUNK)]
        return [found[: len(row)] for found, row in zip(torch.cat(hidden, dim=1), rows, strict=True)]

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """What backward computes again of each layer: nothing, all but attention, or all."""
        for layer in self.model.layers:
            assert isinstance(layer, DecoderLayer)
            layer.checkpointing = checkpointing

    def sharing_input(self) -> Iterator[list[Tensor]]:
        """The weights that each share their input: q, k and v; gate and up."""
        for layer in self.model.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer.self_attn.sharing_input()
            yield layer.mlp.sharing_input()

    def stack_weights(self) -> None:
        """Lays weights that share an input one after another in memory, so that they are one product (`linear`).

        Moving them to another dtype or device parts them again.
        """
        for weights in self.sharing_input():
            stack(weights)

    @property
    def head_module(self) -> "Embedding | Head":
        """The module that has the head's weight."""
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head

    def head(self, hidden: Tensor, **loss_arguments: Any) -> Any:
        """Logits [..., V] of final hidden states [..., H]; or, given any loss arguments, the result of `linear_ce_kl`.

        A tied head has no forward of its own: FSDP2 would reduce the gradients of the two one by one.
        """
        if self.config.tie_word_embeddings:
            return _predicted(hidden, self.model.embed_tokens.weight, **loss_arguments)
        return self.lm_head(hidden, **loss_arguments)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., H]."""
        logits: Tensor = self.head(hidden)
        return logits

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        ops: Operations = reference,
    ) -> "Mistral":
        """Reads the Hugging Face directory of a Mistral or a Llama, one tensor at a time.

        Host memory: the weights in `dtype` where `device` is the CPU, plus one tensor.

        Raises:
            InputError: one line that names everything wrong with the config, or with the tensors.
        """
        model, files = cls.without_values(Path(directory), ops=ops)
        values = {name: files.read(name, dtype, device) for name, _ in model.named_parameters()}
        model.load_state_dict(values, assign=True)
        return model

    @classmethod
    def without_values(
        cls, directory: Path, *, ops: Operations = reference, dtype: torch.dtype = torch.float32
    ) -> tuple["Mistral", WeightFiles]:
        """The model of a Hugging Face directory on "meta", and the files that hold its weights.

        Raises:
            InputError: as `from_pretrained`; layers that the files haven't are refused before any is built.
        """
        config, files = read_config(directory), WeightFiles(directory)
        files.require_layers(config.num_hidden_layers)
        model = cls(config, ops=ops, device="meta", dtype=dtype)
        if config.tie_word_embeddings:
            files.leave_out_tied_head()
        files.require(dict(model.named_parameters()))
        return model, files

    def save_pretrained(self, directory: Path | str, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """Writes a Hugging Face directory: complete or absent.

        Raises:
            InputError: the directory exists already.
        """
        with atomic_directory(Path(directory)) as temporary:
            write_config(temporary, self.config, self.head_module.weight.dtype)
            write_weights(temporary, self.state_dict(), max_shard_bytes=max_shard_bytes)


def document_positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """The position of each of `total` packed tokens inside its document, [T] in the dtype of `cu_seqlens`."""
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    # With the size given, no length has to come back from the device.
    starts_of_tokens = starts.repeat_interleave(lengths, output_size=total)
    return torch.arange(total, dtype=cu_seqlens.dtype, device=cu_seqlens.device) - starts_of_tokens
