"""From histories to the keys and values that every decoder layer reads: linear and light (method.md §2.1).

Shapes: B requests, S events, T SID levels, C context vectors of a request (one, its features, its events); over the
whole batch P places, and without padding R real vectors, E events, F features; G keys and values of all groups of
layers, D model width, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.context import N_BEHAVIORS, N_GAP_BUCKETS, ContextInputs
from gr4ad_core.model.layers import RmsNorm, scaled_to_one


class SidEmbedding(nn.Module):
    """Embeds SID codes, one table for all levels; the context and the decoder share it."""

    offsets_T: Tensor

    def __init__(self, level_sizes: tuple[int, ...], width: int) -> None:
        """Make rows for the codes of every level."""
        super().__init__()
        self.level_sizes = level_sizes
        self.table = nn.Embedding(sum(level_sizes), width)
        starts = [sum(level_sizes[:t]) for t in range(len(level_sizes))]
        self.register_buffer("offsets_T", torch.tensor(starts, device="cpu"), persistent=False)
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
        self.norm = RmsNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.keys_values = nn.Linear(d, 2 * config.kv_groups * d, bias=False)
        self.key_norms = nn.ModuleList(RmsNorm(d // config.n_heads) for _ in range(config.kv_groups))
        self.value_norms = nn.ModuleList(RmsNorm(d // config.n_heads) for _ in range(config.kv_groups))
        for table in (self.behavior, self.gap, self.recency, self.feature, self.item):
            if table is not None:
                nn.init.normal_(table.weight, std=d**-0.5)

    def vectors(self, inputs: ContextInputs, sid_embedding: SidEmbedding) -> tuple[Tensor, Tensor]:
        """Build X without its padding: a learned resting place per request, then its features, then its events.

        The resting place is what a request without history attends to, so attention is always defined. Padding is left
        out, since most histories are much shorter than the longest of their batch.

        Returns:
            The R real vectors `[R, D]`, and where each belongs in `[B · C]`.
        """
        (batch, features), events = inputs.feature_mask_BF.shape, inputs.mask_BS.shape[1]
        width = 1 + features + events
        row_E, recency_E = inputs.mask_BS.nonzero(as_tuple=True)
        sids_ET = inputs.sids_BST[row_E, recency_E]
        x_ED = self.token_merger(sid_embedding(sids_ET).flatten(-2))
        if self.item is not None:
            x_ED = x_ED + self.item(hash_sids(sids_ET, self.item.num_embeddings))
        x_ED = x_ED + self.behavior(inputs.behaviors_BS[row_E, recency_E])
        x_ED = x_ED + self.gap(inputs.gap_BS[row_E, recency_E]) + self.recency(recency_E)
        feature_row, feature_column = inputs.feature_mask_BF.nonzero(as_tuple=True)
        x_FD = self.feature(inputs.feature_ids_BF[feature_row, feature_column])
        place_B = torch.arange(batch, device=row_E.device) * width
        places_R = torch.cat(
            [place_B, place_B[feature_row] + 1 + feature_column, place_B[row_E] + 1 + features + recency_E]
        )
        return torch.cat([self.resting_place.expand(batch, -1), x_FD, x_ED]), places_R

    def forward(self, inputs: ContextInputs, sid_embedding: SidEmbedding) -> SharedKeysValues:
        """Project X to normalised keys and values for each group of layers, and pad them."""
        batch, groups, heads = inputs.batch_size, self.config.kv_groups, self.config.n_heads
        x_RD, places_R = self.vectors(inputs, sid_embedding)
        projected_RD = self.keys_values(self.dropout(self.norm(x_RD)))
        projected_RGHK = projected_RD.view(len(x_RD), 2 * groups, heads, -1)
        gains_GK = torch.stack([norm.weight for norm in (*self.key_norms, *self.value_norms)])
        real_RGHK = scaled_to_one(projected_RGHK) * gains_GK[:, None]
        places = batch * (1 + inputs.feature_mask_BF.shape[1] + inputs.mask_BS.shape[1])
        # Padding repeats a real vector, which the bias hides.
        row_P = places_R.new_zeros(places).index_copy(0, places_R, torch.arange(len(x_RD), device=places_R.device))
        padded = real_RGHK.index_select(0, row_P)
        padded_GBHCK = padded.view(batch, -1, *padded.shape[1:]).permute(2, 0, 3, 1, 4).contiguous()
        bias = real_RGHK.new_full((places,), -torch.inf).index_fill(0, places_R, 0.0)
        return SharedKeysValues(
            keys_BHCK=padded_GBHCK[:groups].unbind(),
            values_BHCK=padded_GBHCK[groups:].unbind(),
            bias_B11C=bias.view(batch, 1, 1, -1),
        )


def hash_sids(sids_T: Tensor, n_buckets: int) -> Tensor:
    """Hash whole SIDs `[..., T]` to buckets `[...]` below `n_buckets`, alike on every device and in every process."""
    mixed = torch.zeros_like(sids_T[..., 0])
    for level in range(sids_T.shape[-1]):
        mixed = (mixed ^ sids_T[..., level]) * 0x5851F42D4C957F2D  # wraps: a multiplicative hash over int64
        mixed = mixed ^ (mixed >> 29)
    return mixed.remainder(n_buckets)
