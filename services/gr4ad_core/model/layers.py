"""The decoder layers: a parallel one that reads only the context, and a causal one that also reads earlier levels.

Shapes: B requests, Q queries of a request, N paths of a request, P positions of a path (levels, the eCPM step last),
W beams, C context vectors, D model width, H heads, K head width, R heads of all requests (B · H).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from gr4ad_core.model.compute_type import multiplies_tiles
from gr4ad_core.model.config import LazyArConfig

EPSILON: Final = torch.finfo(torch.float32).eps
"""Of all norms, whatever they compute in: by default bfloat16 would take its own, far too large one."""


class RmsNorm(nn.RMSNorm):
    """A norm of the last dimension."""

    def __init__(self, width: int) -> None:
        """Make a norm of vectors so wide."""
        super().__init__(width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each vector to a mean square of one, then each entry by its gain."""
        if not _op_by_op(x):
            normed: Tensor = super().forward(x)
            return normed
        scaled = scaled_to_one(x)
        return scaled.mul_(self.weight) if self.weight is not None else scaled

    def give_gain_to(self, reader: nn.Linear) -> None:
        """Let the one layer that reads this norm, in a model that is not trained any more, apply its gain."""
        reader.weight.data *= self.weight.data
        self.register_parameter("weight", None)


def scaled_to_one(x: Tensor) -> Tensor:
    """Scale each vector of the last dimension to a mean square of one."""
    if not _op_by_op(x):
        return rms_norm(x, x.shape[-1:], eps=EPSILON)
    # The same in fewer operations and passes over x: torch has no kernel of its own for processors.
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.hypot_(_least_norm(x.shape[-1], x.dtype)).mul_(x.shape[-1] ** -0.5)


def _op_by_op(x: Tensor) -> bool:
    """Tell whether each operation on x is a pass over memory, and none is needed for a gradient."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


@cache
def _least_norm(width: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor((width * EPSILON) ** 0.5, dtype=dtype)


class ResidualLinear(nn.Linear):
    """The last projection of a branch, which adds to the residual stream."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        """Make the projection; `dropout` is the share of what it adds that is dropped in training."""
        super().__init__(in_features, out_features, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """Return the residual stream `[..., out]` and the mapped `[..., in]`, added up."""
        added: Tensor = residual + self.dropout(linear(x, self.weight))
        return added


class SwiGlu(nn.Module):
    """Gated feed-forward block."""

    def __init__(self, config: LazyArConfig) -> None:
        """Make the gate and input projections as one matrix."""
        super().__init__()
        self.gate_and_input = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.output = ResidualLinear(config.d_ff, config.d_model, config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map `[..., D]` to `[..., D]`, and add it to the residual stream."""
        gate, value = self.gate_and_input(x).chunk(2, dim=-1)
        added: Tensor = self.output(silu(gate) * value, residual)
        return added


def attend(q_BHQK: Tensor, keys_BHCK: Tensor, values_BHCK: Tensor, bias_B11C: Tensor) -> Tensor:
    """Read values by softmax(q · k / √K + bias), `[B, H, Q, K]`."""
    y_BHQK: Tensor
    if q_BHQK.device.type == "cpu" and q_BHQK.dtype == torch.bfloat16 and not multiplies_tiles():
        # Without tiles, torch's fused attention is slower in bfloat16 than whole products of hundreds of beams.
        q_RQK, keys_RCK, values_RCK = (x_BHCK.flatten(0, 1) for x_BHCK in (q_BHQK, keys_BHCK, values_BHCK))
        bias_R1C = bias_B11C.expand(-1, q_BHQK.shape[1], -1, -1).flatten(0, 1)
        scores_RQC = torch.baddbmm(bias_R1C, q_RQK, keys_RCK.transpose(1, 2), alpha=q_BHQK.shape[-1] ** -0.5)
        y_BHQK = torch.bmm(scores_RQC.softmax(-1), values_RCK).view_as(q_BHQK)
    else:
        y_BHQK = scaled_dot_product_attention(q_BHQK, keys_BHCK, values_BHCK, attn_mask=bias_B11C)
    return y_BHQK


class CrossAttention(nn.Module):
    """Attention to the context, whose keys and values come ready-made and are shared by all queries of a request."""

    def __init__(self, config: LazyArConfig) -> None:
        """Make the query and output projections."""
        super().__init__()
        self.n_heads = config.n_heads
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.output = ResidualLinear(config.d_model, config.d_model, config.dropout)

    def forward(
        self, x_BQD: Tensor, residual_BQD: Tensor, keys_BHCK: Tensor, values_BHCK: Tensor, bias_B11C: Tensor
    ) -> Tensor:
        """Read the context from each query, and add it to the residual stream."""
        q_BHQK = self.query(x_BQD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        y_BHQK = attend(q_BHQK, keys_BHCK, values_BHCK, bias_B11C)
        added_BQD: Tensor = self.output(y_BHQK.transpose(1, 2).flatten(-2), residual_BQD)
        return added_BQD


class LevelAttention(nn.Module):
    """Causal self-attention over the few positions of one path."""

    def __init__(self, config: LazyArConfig) -> None:
        """Make the query, key and value projections as one matrix."""
        super().__init__()
        self.n_heads = config.n_heads
        self.query_key_value = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.output = ResidualLinear(config.d_model, config.d_model, config.dropout)

    def forward(self, x_NPD: Tensor, residual_NPD: Tensor) -> Tensor:
        """Attend from every position to itself and the earlier ones of its path; add that to the residual stream."""
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.query_key_value(x_NPD).chunk(3, -1)
        )
        y_NHPK = scaled_dot_product_attention(q, k, v, is_causal=True)
        added_NPD: Tensor = self.output(y_NHPK.transpose(1, 2).flatten(-2), residual_NPD)
        return added_NPD

    def project(self, x_BWD: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries `[B, W, D]` and, side by side, keys and values `[B, W, 2D]` of one position."""
        q_BWD, kv_BWE = self.query_key_value(x_BWD).split([x_BWD.shape[-1], 2 * x_BWD.shape[-1]], dim=-1)
        return q_BWD, kv_BWE

    def read_path(self, q_BWD: Tensor, path: Sequence[Tensor], residual_BWD: Tensor) -> Tensor:
        """Attend from one query per beam to the positions of its own path; add that to the residual stream.

        Args:
            q_BWD: The queries.
            path: Keys and values of each position, side by side, `[B, W, 2D]`, or `[B, 1, 2D]` where beams share one.
            residual_BWD: The stream.
        """
        q_BWHK = q_BWD.view(*q_BWD.shape[:2], self.n_heads, -1)
        k_BWHK, v_BWHK = zip(
            *(kv_BWE.view(*kv_BWE.shape[:2], 2, self.n_heads, -1).unbind(2) for kv_BWE in path), strict=True
        )
        # A handful of positions: sums of products beat a matrix product per beam and head.
        scores_PBWH = torch.stack([(q_BWHK * k).sum(-1) for k in k_BWHK]) * q_BWHK.shape[-1] ** -0.5
        weights_PBWH1 = scores_PBWH.softmax(0).unsqueeze(-1)
        y_BWHK = weights_PBWH1[0] * v_BWHK[0]
        for weight, v in zip(weights_PBWH1[1:], v_BWHK[1:], strict=True):
            y_BWHK = y_BWHK.addcmul_(weight, v)
        added_BWD: Tensor = self.output(y_BWHK.flatten(-2), residual_BWD)
        return added_BWD


class ParallelLayer(nn.Module):
    """A trunk layer: each query by itself reads the context, then a feed-forward block."""

    def __init__(self, config: LazyArConfig) -> None:
        """Make the blocks, each behind its norm."""
        super().__init__()
        self.cross_norm = RmsNorm(config.d_model)
        self.cross_attention = CrossAttention(config)
        self.feed_forward_norm = RmsNorm(config.d_model)
        self.feed_forward = SwiGlu(config)

    def forward(self, x_BQD: Tensor, keys_BHCK: Tensor, values_BHCK: Tensor, bias_B11C: Tensor) -> Tensor:
        """Return the states `[B, Q, D]` after the layer."""
        x_BQD = self.cross_attention(self.cross_norm(x_BQD), x_BQD, keys_BHCK, values_BHCK, bias_B11C)
        out: Tensor = self.feed_forward(self.feed_forward_norm(x_BQD), x_BQD)
        return out

    def fold_gains(self) -> None:
        """Make the norms' gains part of the projections behind them, in a layer that is not trained any more."""
        self.cross_norm.give_gain_to(self.cross_attention.query)
        self.feed_forward_norm.give_gain_to(self.feed_forward.gate_and_input)


class CausalLayer(nn.Module):
    """An autoregressive layer: causal self-attention over levels, then a parallel layer."""

    def __init__(self, config: LazyArConfig) -> None:
        """Make the self-attention in front of the parallel part."""
        super().__init__()
        self.level_norm = RmsNorm(config.d_model)
        self.level_attention = LevelAttention(config)
        self.parallel = ParallelLayer(config)

    def forward(self, x_BNPD: Tensor, keys_BHCK: Tensor, values_BHCK: Tensor, bias_B11C: Tensor) -> Tensor:
        """Return the states `[B, N, P, D]` of whole paths after the layer."""
        x_NPD = x_BNPD.flatten(0, 1)
        x_NPD = self.level_attention(self.level_norm(x_NPD), x_NPD)
        out: Tensor = self.parallel(x_NPD.view_as(x_BNPD).flatten(1, 2), keys_BHCK, values_BHCK, bias_B11C)
        return out.view_as(x_BNPD)

    def step(
        self,
        x_BWD: Tensor,
        remember: Callable[[Tensor], Sequence[Tensor]],
        keys_BHCK: Tensor,
        values_BHCK: Tensor,
        bias_B11C: Tensor,
    ) -> Tensor:
        """Return the states `[B, W, D]` of one more position per beam.

        `remember` takes the position's keys and values `[B, W, 2D]` and returns those of each beam's path so far,
        this position included: P tensors as `LevelAttention.read_path` takes them.
        """
        q_BWD, kv_BWE = self.project(x_BWD)
        return self.read(q_BWD, remember(kv_BWE), x_BWD, keys_BHCK, values_BHCK, bias_B11C)

    def project(self, x_BWD: Tensor) -> tuple[Tensor, Tensor]:
        """Do the first part of `step`: what `LevelAttention.project` returns, of the states before the layer."""
        return self.level_attention.project(self.level_norm(x_BWD))

    def read(
        self,
        q_BWD: Tensor,
        path: Sequence[Tensor],
        x_BWD: Tensor,
        keys_BHCK: Tensor,
        values_BHCK: Tensor,
        bias_B11C: Tensor,
    ) -> Tensor:
        """Do the rest of `step`: read the path, then the context."""
        x_BWD = self.level_attention.read_path(q_BWD, path, x_BWD)
        out: Tensor = self.parallel(x_BWD, keys_BHCK, values_BHCK, bias_B11C)
        return out

    def fold_gains(self) -> None:
        """Make the norms' gains part of the projections behind them, in a layer that is not trained any more."""
        self.level_norm.give_gain_to(self.level_attention.query_key_value)
        self.parallel.fold_gains()
