"""From histories to the keys and values that every decoder layer reads: linear and light (method.md §2.1).

Shapes: B requests, S events, T SID levels, F features, C context vectors (1 + F + S), D model width, H heads, K head
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.context import N_BEHAVIORS, N_GAP_BUCKETS, ContextInputs


class SidEmbedding(nn.Module):
    """Embeds SID codes, one table for all levels; the context and the decoder share it."""

    offsets_T: Tensor

    def __init__(self, level_sizes: tuple[int, ...], width: int) -> None:
        """Make rows for the codes of every level."""
        super().__init__()
        self.level_sizes = level_sizes
        self.table = nn.Embedding(sum(level_sizes), width)
        starts = [sum(level_sizes[:t]) for t in range(len(level_sizes))]
        self.register_buffer("offsets_T", torch.tensor(starts), persistent=False)
        nn.init.normal_(self.table.weight, std=width**-0.5)

    def forward(self, sids_T: Tensor) -> Tensor:
        """Embed whole SIDs `[..., T]` as `[..., T, D]`."""
        embedded: Tensor = self.table(sids_T + self.offsets_T)
        return embedded

    def of_level(self, level: int, codes: Tensor) -> Tensor:
        """Embed codes `[...]` of one level as `[..., D]`."""
        embedded: Tensor = self.table(codes + sum(self.level_sizes[:level]))
        return embedded

    def rows(self, level: int) -> Tensor:
        """Return the rows of one level, `[V_t, D]`."""
        start = sum(self.level_sizes[:level])
        return self.table.weight[start : start + self.level_sizes[level]]


@dataclass(frozen=True)
class SharedKeysValues:
    """Cross-attention keys and values, one pair per group of layers, and the mask all of them share."""

    keys_BHCK: tuple[Tensor, ...]
    values_BHCK: tuple[Tensor, ...]
    bias_B11C: Tensor
    """0 at real context vectors, −inf at padding; added to attention scores."""


class ContextProcessor(nn.Module):
    """Turns one vector per event and feature into shared keys and values, without self-attention."""

    def __init__(self, config: LazyArConfig) -> None:
        """Make the embeddings and projections, all but the SID embedding, which the decoder lends."""
        super().__init__()
        d = config.d_model
        self.config = config
        self.token_merger = nn.Linear(config.n_levels * d, d)
        self.item = nn.Embedding(config.n_item_buckets, d) if config.n_item_buckets else None
        self.behavior = nn.Embedding(N_BEHAVIORS, d)
        self.gap = nn.Embedding(N_GAP_BUCKETS, d)
        self.recency = nn.Embedding(config.max_history, d)
        self.feature = nn.Embedding(max(config.n_feature_buckets, 1), d)
        self.resting_place = nn.Parameter(torch.zeros(d))
        self.norm = nn.RMSNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.keys_values = nn.Linear(d, 2 * config.kv_groups * d, bias=False)
        self.key_norms = nn.ModuleList(nn.RMSNorm(d // config.n_heads) for _ in range(config.kv_groups))
        self.value_norms = nn.ModuleList(nn.RMSNorm(d // config.n_heads) for _ in range(config.kv_groups))
        for table in (self.behavior, self.gap, self.recency, self.feature, self.item):
            if table is not None:
                nn.init.normal_(table.weight, std=d**-0.5)

    def vectors(self, inputs: ContextInputs, sid_embedding: SidEmbedding) -> tuple[Tensor, Tensor]:
        """Build X: a learned resting place, then the features, then the events from the latest on.

        The resting place is what a request without history attends to, so attention is always defined.

        Returns:
            X `[B, C, D]`, and a mask `[B, C]` that is true at real vectors.
        """
        batch, events = inputs.mask_BS.shape
        h_BSD = self.token_merger(sid_embedding(inputs.sids_BST).flatten(-2))
        if self.item is not None:
            h_BSD = h_BSD + self.item(hash_sids(inputs.sids_BST, self.item.num_embeddings))
        h_BSD = h_BSD + self.behavior(inputs.behaviors_BS) + self.gap(inputs.gap_BS) + self.recency.weight[:events]
        rest_B1D = self.resting_place.expand(batch, 1, -1)
        x_BCD = torch.cat([rest_B1D, self.feature(inputs.feature_ids_BF), h_BSD], dim=1)
        always_B1 = torch.ones(batch, 1, dtype=torch.bool, device=x_BCD.device)
        return x_BCD, torch.cat([always_B1, inputs.feature_mask_BF, inputs.mask_BS], dim=1)

    def forward(self, inputs: ContextInputs, sid_embedding: SidEmbedding) -> SharedKeysValues:
        """Project X to normalised keys and values for each group of layers."""
        x_BCD, mask_BC = self.vectors(inputs, sid_embedding)
        x_BCD = self.dropout(self.norm(x_BCD))
        heads = self.config.n_heads
        parts_BHCK = [
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in self.keys_values(x_BCD).chunk(2 * self.config.kv_groups, dim=-1)
        ]
        groups = self.config.kv_groups
        return SharedKeysValues(
            keys_BHCK=tuple(norm(k) for norm, k in zip(self.key_norms, parts_BHCK[:groups], strict=True)),
            values_BHCK=tuple(norm(v) for norm, v in zip(self.value_norms, parts_BHCK[groups:], strict=True)),
            bias_B11C=torch.zeros_like(mask_BC, dtype=x_BCD.dtype).masked_fill(~mask_BC, -torch.inf)[:, None, None],
        )


def hash_sids(sids_T: Tensor, n_buckets: int) -> Tensor:
    """Hash whole SIDs `[..., T]` to buckets `[...]` below `n_buckets`, alike on every device and in every process."""
    mixed = torch.zeros_like(sids_T[..., 0])
    for level in range(sids_T.shape[-1]):
        mixed = (mixed ^ sids_T[..., level]) * 0x5851F42D4C957F2D  # wraps: a multiplicative hash over int64
        mixed = mixed ^ (mixed >> 29)
    return mixed.remainder(n_buckets)
