"""LazyAR: a parallel trunk computed once per request, then a short autoregressive decoder over SID levels
(method.md §2.2, §2.3).

Shapes: B requests, N paths (candidate SIDs) of a request, W beams, T SID levels, P positions of a path (T levels, then
the eCPM step: T + 1), D model width, V codes of a level.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gr4ad_core.model.compiled_layers import can_compile, compile_layers
from gr4ad_core.model.config import COMPUTE_TYPES, LazyArConfig
from gr4ad_core.model.context import ContextInputs
from gr4ad_core.model.context_processor import ContextProcessor, SharedKeysValues, SidEmbedding
from gr4ad_core.model.int8_linear import round_linears
from gr4ad_core.model.layers import CausalLayer, ParallelLayer, ResidualLinear, RmsNorm
from gr4ad_core.model.packed_linear import pack_linears

__all__ = ["Context", "LazyAr", "LazyArConfig", "TokenOutputs"]


@dataclass(frozen=True)
class Context:
    """All of a request batch that beams share: computed once, never copied per beam."""

    shared: SharedKeysValues
    """Cross-attention keys and values of every group of layers."""
    trunk_BPD: Tensor
    """Trunk states m_t^(K) of all levels and of the eCPM step."""

    @property
    def batch_size(self) -> int:
        """Requests B."""
        return self.trunk_BPD.shape[0]


@dataclass(frozen=True)
class TokenOutputs:
    """Logits of every token of one SID per request."""

    level_logits: list[Tensor]
    """T tensors `[B, V_t]`: s_t given s_<t."""
    ecpm_logits: Tensor
    """`[B, n_ecpm_buckets]`: the value bucket given the whole SID."""
    mtp_level_logits: list[Tensor]
    """The same as `level_logits`, read straight from the trunk; empty when K = 0."""
    mtp_ecpm_logits: Tensor | None
    """The same as `ecpm_logits`, read straight from the trunk; None when K = 0."""


class Fuse(nn.Module):
    """Injects the previous token into a trunk state: `Fuse(m, s) = W_f [ m ⊙ (W_g s) ; s ]` (method.md §2.2)."""

    def __init__(self, width: int) -> None:
        """Make W_g and W_f."""
        super().__init__()
        self.gate = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(2 * width, width, bias=False)

    def forward(self, m: Tensor, s: Tensor) -> Tensor:
        """Fuse `[..., D]` with `[..., D]`; the shapes broadcast."""
        fused: Tensor = self.output(torch.cat([m * self.gate(s), s], dim=-1))
        return fused

    def of_tokens(self, s: Tensor) -> Tensor:
        """Return what depends on the token alone, `[..., 2D]`: its gate, and its part of the fused state."""
        return torch.cat([self.gate(s), linear(s, self.output.weight[:, s.shape[-1] :])], dim=-1)


class TabledFuse(nn.Module):
    """Takes the place of a `Fuse` that is not trained any more: what depends on a token alone is made once a token."""

    def __init__(self, fuse: Fuse) -> None:
        """Take the columns of W_f that multiply the gated state."""
        super().__init__()
        width = fuse.gate.in_features
        self.output = ResidualLinear(width, width, dropout=0.0)
        self.output.weight = nn.Parameter(fuse.output.weight.detach()[:, :width].contiguous())

    def forward(self, m: Tensor, of_token: Tensor) -> Tensor:
        """Fuse `[..., D]` with what `Fuse.of_tokens` made of the token, `[..., 2D]`; the shapes broadcast."""
        gate, added = of_token.chunk(2, dim=-1)
        fused: Tensor = self.output(m * gate, added)
        return fused


class LazyAr(nn.Module):
    """The generative model: reads a user's history, writes the SID of an ad token by token, then values it."""

    ecpm_edges: Tensor
    """Upper edges of all value buckets but the last, `[n_ecpm_buckets − 1]`, micros, rising."""
    ecpm_means: Tensor
    """Mean eCPM of every value bucket, `[n_ecpm_buckets]`, micros."""

    def __init__(self, config: LazyArConfig) -> None:
        """Make a model with random weights; seed torch's generator first for a repeatable one."""
        super().__init__()
        d = config.d_model
        self.config = config
        self.sid_embedding = SidEmbedding(config.level_sizes, d)
        self.fusing_embedding: SidEmbedding | None = None
        """What `fuse` takes of a token, where that is not its embedding; a served policy's."""
        self.context_processor = ContextProcessor(config)
        self.position = nn.Parameter(torch.empty(config.n_levels + 1, d))
        self.bos = nn.Parameter(torch.empty(d))
        self.trunk = nn.ModuleList(ParallelLayer(config) for _ in range(config.n_lazy))
        self.trunk_norm = RmsNorm(d)
        self.fuse: Fuse | TabledFuse = Fuse(d)
        self.decoder = nn.ModuleList(CausalLayer(config) for _ in range(config.n_layers - config.n_lazy))
        self.final_norm = RmsNorm(d)
        self.head = None if config.tied_heads else SidEmbedding(config.level_sizes, d)
        self.head_bias = nn.Parameter(torch.zeros(sum(config.level_sizes)))
        self.ecpm_head = nn.Linear(d, config.n_ecpm_buckets)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("ecpm_edges", torch.zeros(config.n_ecpm_buckets - 1))
        self.register_buffer("ecpm_means", torch.zeros(config.n_ecpm_buckets))
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.position, std=self.config.d_model**-0.5)
        nn.init.normal_(self.bos, std=self.config.d_model**-0.5)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Each layer adds two or three branches to the residual stream: keep its variance near one.
                is_branch = name.startswith(("trunk", "decoder")) and name.endswith("output")
                scale = (2 * self.config.n_layers) ** -0.5 if is_branch else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in (self.ecpm_head.weight, *([] if self.head is None else [self.head.table.weight])):
            nn.init.normal_(head, std=0.02)  # starts near the uniform distribution

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.bos.device

    def for_serving(self, compute_type: torch.dtype = torch.float32) -> LazyAr:
        """Turn this model into one that only decodes, on the device where it is, and return it.

        Everything in front of the heads computes in the given type. States are float32 again before the final norm, and
        so are the heads: a token's probability is rounded by the layers alone, not once more by its own logit and the
        sum over its level. On a processor, weights are laid out for its products (`PackedLinear`); on a GPU, layers are
        compiled as they are first called. The model cannot be moved, saved or trained any more.

        Args:
            compute_type: `torch.float32`, `torch.bfloat16`, or `torch.int8`, which is bfloat16 but for the linear
                layers that every beam goes through: they multiply in int8. Those of the context and the trunk, once
                for all beams, would save little more and round twice as much.

        Raises:
            ValueError: Another type, or int8 away from the CPU.
        """
        if str(compute_type).removeprefix("torch.") not in COMPUTE_TYPES:
            of_torch = ", ".join(f"torch.{name}" for name in COMPUTE_TYPES)
            raise ValueError(f"compute_type: {compute_type}: give one of {of_torch}")
        if compute_type == torch.int8 and self.device.type != "cpu":
            raise ValueError(f"compute_type: torch.int8 on {self.device}: give torch.bfloat16, int8 is for the CPU")
        self._tabulate_tokens()
        for layer in (*self.trunk, *self.decoder):
            layer.fold_gains()
        self.context_processor.norm.give_gain_to(self.context_processor.keys_values)
        if compute_type != torch.float32:
            for name, module in self.named_children():
                if name not in ("final_norm", "head", "ecpm_head"):
                    module.to(torch.bfloat16)
            self.position.data, self.bos.data = self.position.bfloat16(), self.bos.bfloat16()
        if compute_type == torch.int8:
            round_linears(self.decoder)
        for part in (self.context_processor, self.trunk, self.fuse, self.decoder):
            pack_linears(part)
        if can_compile(self.device):
            compile_layers(self.trunk, self.decoder)  # type: ignore[arg-type]
        return self.eval()

    def _tabulate_tokens(self) -> None:
        assert isinstance(self.fuse, Fuse)
        with torch.no_grad():
            self.fusing_embedding = copy.deepcopy(self.sid_embedding)
            of_tokens = self.fuse.of_tokens(self.sid_embedding.table.weight)
            self.fusing_embedding.table = nn.Embedding(len(of_tokens), of_tokens.shape[1], _weight=of_tokens)
            self.bos = nn.Parameter(self.fuse.of_tokens(self.bos))
        self.fuse = TabledFuse(self.fuse)

    # --- once per request ---------------------------------------------------------------------------------------------

    def encode_context(self, inputs: ContextInputs) -> Context:
        """Compute what all beams of a request share: keys and values of X, and the parallel trunk (method.md §2.2).

        The trunk sees positions and context only, so one pass covers all levels. With K = 0 it is the positions alone.
        """
        shared = self.context_processor(inputs, self.sid_embedding)
        m_BPD = self.position.expand(inputs.batch_size, -1, -1)
        for layer, block in enumerate(self.trunk):
            m_BPD = block(m_BPD, *self._keys_values(shared, layer))
        return Context(shared=shared, trunk_BPD=self.trunk_norm(m_BPD))

    @property
    def _fusing(self) -> SidEmbedding:
        return self.fusing_embedding or self.sid_embedding

    def _keys_values(self, shared: SharedKeysValues, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        group = self.config.kv_group(layer)
        return shared.keys_BHCK[group], shared.values_BHCK[group], shared.bias_B11C

    # --- autoregressive part, whole paths at once ---------------------------------------------------------------------

    def decode_paths(self, context: Context, sids_BNT: Tensor) -> Tensor:
        """Run the autoregressive layers over given SIDs, all positions at once.

        Args:
            context: Of the B requests; shared by the N paths of each.
            sids_BNT: Codes, int64.

        Returns:
            States `[B, N, T + 1, D]`: position t predicts s_(t+1) from s_1 … s_t; the last one, the eCPM bucket.
        """
        batch, n_paths, _ = sids_BNT.shape
        bos_BN1D = self.bos.expand(batch, n_paths, 1, -1)
        s_BNPD = self.dropout(torch.cat([bos_BN1D, self._fusing(sids_BNT)], dim=2))
        x_BNPD = self.fuse(context.trunk_BPD[:, None], s_BNPD)
        for layer, block in enumerate(self.decoder, start=self.config.n_lazy):
            x_BNPD = block(x_BNPD, *self._keys_values(context.shared, layer))
        states: Tensor = self.final_norm(x_BNPD.to(self.final_norm.weight.dtype))
        return states

    def teacher_forced(self, inputs: ContextInputs, sids_BT: Tensor) -> TokenOutputs:
        """Predict every token of one SID per request from the true tokens before it (method.md §3.1).

        Args:
            inputs: The B histories.
            sids_BT: The SIDs to predict, int64.
        """
        context = self.encode_context(inputs)
        return self._token_outputs(self.decode_paths(context, sids_BT[:, None])[:, 0], context.trunk_BPD)

    def teacher_forced_lists(self, inputs: ContextInputs, sids_BNT: Tensor, mask_BN: Tensor) -> TokenOutputs:
        """Predict every token of the SIDs of a list per request, the context of a request computed once.

        Args:
            inputs: The B histories.
            sids_BNT: The SIDs to predict, int64; valid codes in padding too.
            mask_BN: True at items, False in padding.

        Returns:
            The outputs of the items alone, list by list: as many rows as the mask has items.
        """
        context = self.encode_context(inputs)
        m_BNPD = context.trunk_BPD[:, None].expand(-1, mask_BN.shape[1], -1, -1)
        return self._token_outputs(self.decode_paths(context, sids_BNT)[mask_BN], m_BNPD[mask_BN])

    def _token_outputs(self, h_BPD: Tensor, m_BPD: Tensor) -> TokenOutputs:
        levels = range(self.config.n_levels)
        lazy = self.config.n_lazy > 0
        return TokenOutputs(
            level_logits=[self.level_logits(level, h_BPD[:, level]) for level in levels],
            ecpm_logits=self.ecpm_head(h_BPD[:, -1]),
            mtp_level_logits=[self.level_logits(level, m_BPD[:, level]) for level in levels] if lazy else [],
            mtp_ecpm_logits=self.ecpm_head(m_BPD[:, -1]) if lazy else None,
        )

    def sid_log_probs(self, context: Context, sids_BNT: Tensor) -> Tensor:
        """Return the log-probability `[B, N]` of whole SIDs, `Σ_t log p(s_t | s_<t, X)` over full vocabularies."""
        h_BNPD = self.decode_paths(context, sids_BNT)
        log_probs_BN = torch.zeros(sids_BNT.shape[:2], device=sids_BNT.device)
        for level in range(self.config.n_levels):
            log_p_BNV = self.level_logits(level, h_BNPD[:, :, level]).log_softmax(-1)
            log_probs_BN = log_probs_BN + log_p_BNV.gather(-1, sids_BNT[..., level, None])[..., 0]
        return log_probs_BN

    # --- autoregressive part, one position of many beams --------------------------------------------------------------

    def decode_step(
        self,
        context: Context,
        position: int,
        previous_BW: Tensor | None,
        remember: Callable[[int, Tensor], Sequence[Tensor]],
    ) -> Tensor:
        """Run the autoregressive layers for one more position of W beams.

        Args:
            context: Of the B requests; the beams of a request share it.
            position: 0 … T, from 0; T is the eCPM step.
            previous_BW: Codes of the level before, int64; None at position 0, which starts from one BOS beam.
            remember: Takes an autoregressive layer's index (from 0) and this position's keys and values, and returns
                those of each beam's whole path, position by position (see `LevelAttention.read_path`).

        Returns:
            States `[B, W, D]`, the same as `decode_paths` gives at this position.
        """
        if previous_BW is None:
            s_BWD = self.bos.expand(context.batch_size, 1, -1)
        else:
            s_BWD = self._fusing.of_level(position - 1, previous_BW)
        x_BWD = self.fuse(context.trunk_BPD[:, position, None], s_BWD)
        for index, block in enumerate(self.decoder):
            keys_values = self._keys_values(context.shared, self.config.n_lazy + index)
            x_BWD = block.step(x_BWD, partial(remember, index), *keys_values)  # type: ignore[operator]
        states: Tensor = self.final_norm(x_BWD.to(self.final_norm.weight.dtype))
        return states

    # --- heads --------------------------------------------------------------------------------------------------------

    def level_logits(self, level: int, states: Tensor) -> Tensor:
        """Return logits `[..., V_t]` over the full vocabulary of a level (from 0) from states `[..., D]`."""
        start = sum(self.config.level_sizes[:level])
        rows_VD = (self.head or self.sid_embedding).rows(level)
        return linear(states, rows_VD.to(states.dtype), self.head_bias[start : start + len(rows_VD)])

    def expected_value(self, states: Tensor) -> Tensor:
        """Return E[eCPM] `[...]` in micros from states `[..., D]` of the eCPM step (method.md §2.3)."""
        probabilities: Tensor = self.ecpm_head(states).softmax(-1)
        return probabilities @ self.ecpm_means

    def set_ecpm_buckets(self, edges: Tensor, means: Tensor) -> None:
        """Set the value buckets that the eCPM token speaks of.

        Args:
            edges: Upper edges of all buckets but the last, `[n_ecpm_buckets − 1]`, micros.
            means: Mean eCPM of each bucket, `[n_ecpm_buckets]`, micros.

        Raises:
            ValueError: The shapes differ from the model's.
        """
        if edges.shape != self.ecpm_edges.shape or means.shape != self.ecpm_means.shape:
            raise ValueError(
                f"edges, means: {tuple(edges.shape)}, {tuple(means.shape)}: "
                f"give {tuple(self.ecpm_edges.shape)} and {tuple(self.ecpm_means.shape)}"
            )
        self.ecpm_edges.copy_(edges)
        self.ecpm_means.copy_(means)

    def ecpm_bucket(self, ecpm_micros: Tensor) -> Tensor:
        """Return the value bucket, int64, of each eCPM (micros, any shape); a value on an edge goes below it."""
        return torch.bucketize(ecpm_micros.to(self.ecpm_edges), self.ecpm_edges)
