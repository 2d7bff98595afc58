"""A model run token by token: keys and values of what it has read are kept, not computed again."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vikhr_fast.model import Attention, DecoderLayer, Mistral
from vikhr_kernels import linear

_CHUNK = 1024  # prompt tokens read at once: the scores of a chunk with all before it exist at once


class CachedModel:
    """Reads rows of tokens of different lengths, then goes on with one token a row at a time.

    A row's slot in the cache is its position, so a shorter row leaves slots behind it that are never looked at before
    they are written.

    Args:
        model: not sharded.
        rows: how many.
        positions: how many a row can have.
    """

    def __init__(self, model: Mistral, rows: int, positions: int) -> None:
        weight = model.lm_head.weight
        shape = (rows, positions, model.config.num_key_value_heads, model.config.head_dim)
        self._model = model
        self._caches = [
            tuple(torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in ("keys", "values"))
            for _ in model.model.layers
        ]
        self._lengths = torch.zeros(rows, dtype=torch.int64, device=weight.device)

    @torch.no_grad()
    def read(self, prompts: list[list[int]]) -> Tensor:
        """Logits [rows, V] after each row's prompt, which has at least one token."""
        device = self._lengths.device
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(self._lengths.max())
        tokens = torch.zeros((len(prompts), longest), dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        last: Tensor | None = None
        for start in range(0, longest, _CHUNK):
            chunk = tokens[:, start : start + _CHUNK]
            positions = start + torch.arange(chunk.shape[1], device=device).expand(chunk.shape)
            hidden = self._hidden(chunk, positions)
            if last is None:
                last = hidden.new_zeros((len(prompts), hidden.shape[-1]))
            at = self._lengths - 1 - start
            ends_here = (at >= 0) & (at < chunk.shape[1])
            last[ends_here] = hidden[ends_here, at[ends_here]]
        assert last is not None
        return self._model.logits(last)

    @torch.no_grad()
    def read_on(self, rows: list[list[int]]) -> list[Tensor]:
        """Final hidden states [tokens, H] of each row's further tokens, of which it may have none.

        Shorter rows are filled up, so `positions` must hold the longest of what was read with the longest of `rows`.
        """
        device, longest = self._lengths.device, max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64, device=device)
        hidden = [self._model.lm_head.weight.new_zeros((len(rows), 0, self._model.config.hidden_size))]
        for start in range(0, longest, _CHUNK):
            chunk = tokens[:, start : start + _CHUNK]
            positions = self._lengths[:, None] + start + torch.arange(chunk.shape[1], device=device)
            hidden.append(self._hidden(chunk, positions))
        self._lengths = self._lengths + torch.tensor([len(row) for row in rows], device=device)
        return [found[: len(row)] for found, row in zip(torch.cat(hidden, dim=1), rows, strict=True)]

    @torch.no_grad()
    def go_on(self, tokens: Tensor) -> Tensor:
        """Logits [rows, V] after one more token a row, [rows] int64."""
        hidden = self._hidden(tokens[:, None], self._lengths[:, None])
        self._lengths = self._lengths + 1
        return self._model.logits(hidden[:, 0])

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows alone, [rows] int64."""
        self._caches = [(keys[rows], values[rows]) for keys, values in self._caches]
        self._lengths = self._lengths[rows]

    def _hidden(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Final hidden states [B, N, H] of tokens [B, N] at these positions of their rows."""
        decoder, window = self._model.model, self._model.config.sliding_window
        seen = torch.arange(int(positions.max()) + 1, device=tokens.device)
        mask = seen <= positions[..., None]  # [B, N, S]
        if window is not None:
            mask &= seen > positions[..., None] - window
        branch, residual = decoder.embed_tokens(tokens), None
        for layer, (keys, values) in zip(decoder.layers, self._caches, strict=True):
            assert isinstance(layer, DecoderLayer)
            normalised, hidden = layer.begin(branch, residual)
            attended = _attend(layer.self_attn, normalised, positions, keys, values, mask)
            normalised, residual = layer.post_attention_layernorm.add(attended, hidden)
            branch = layer.mlp(normalised)
        assert residual is not None
        normalised, _ = decoder.norm.add(branch, residual)
        return normalised


def _attend(
    attention: Attention, hidden: Tensor, positions: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:
    """Attention of [B, N, H] to everything cached, itself included."""
    q, k, v = attention.project(hidden)  # [B, N, heads, D]
    q, k = (
        x.unflatten(0, positions.shape)
        for x in attention.rope(q.flatten(0, 1), k.flatten(0, 1), positions.flatten(), attention.rope_theta)
    )
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    keys[rows, positions], values[rows, positions] = k, v
    seen = mask.shape[-1]
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2),  # [B, heads, N, D]
        keys[:, :seen].transpose(1, 2),
        values[:, :seen].transpose(1, 2),
        attn_mask=mask[:, None],
        enable_gqa=True,
    )
    (output,) = linear(attended.transpose(1, 2).flatten(-2), attention.o_proj.weight)
    return output
