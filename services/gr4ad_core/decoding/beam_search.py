"""Constrained beam search over SIDs: all beams of all requests at once, on one copy of the context (method.md §4).

Shapes: B requests, W beams, N candidates, T SID levels, P positions of a path so far, M children of the widest node,
V codes of a level, D model width, E keys and values side by side (2D).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.model.lazy_ar import Context, LazyAr


@dataclass(frozen=True)
class PathStates:
    """Keys and values of every position decoded so far, and which of them lie on each beam's path.

    A beam's past is one row number for each earlier position, not a copy of a cache: when a beam is kept, dropped or
    doubled, only numbers move. BOS needs none: it is one for all beams of a request.
    """

    kv_BWE: tuple[list[Tensor], ...]
    """Per autoregressive layer, keys and values of each position's beams, from BOS on."""
    rows_BW: tuple[Tensor, ...]
    """Of each earlier position but BOS, which of all requests' rows lies on the path of each beam."""

    @classmethod
    def at_bos(cls, model: LazyAr) -> PathStates:
        """Start one beam per request."""
        return cls(tuple([] for _ in model.decoder), ())

    def advance(self, parents_BW: Tensor) -> PathStates:
        """Open the next position: beam w continues the path of beam `parents_BW[:, w]`."""
        batch, width, _ = self.kv_BWE[0][-1].shape
        kv_BWE = tuple(list(positions) for positions in self.kv_BWE)
        if len(kv_BWE[0]) == 1:
            return PathStates(kv_BWE, ())
        first_B1 = torch.arange(batch, device=parents_BW.device)[:, None] * width
        earlier = tuple(rows_BW.gather(1, parents_BW) for rows_BW in self.rows_BW)
        return PathStates(kv_BWE, (*earlier, first_B1 + parents_BW))

    def remember(self, layer: int, kv_BWE: Tensor) -> list[Tensor]:
        """Keep this position's keys and values; return those of each beam's path, see `LevelAttention.read_path`."""
        bos_B1E, past_BWE = self.kv_BWE[layer][:1], self.kv_BWE[layer][1:]
        own_path = [
            kv_BWE_then.flatten(0, 1).index_select(0, rows_BW.flatten()).view(*rows_BW.shape, -1)
            for kv_BWE_then, rows_BW in zip(past_BWE, self.rows_BW, strict=True)
        ]
        self.kv_BWE[layer].append(kv_BWE)
        return [*bos_B1E, *own_path, kv_BWE]


@dataclass(frozen=True)
class BeamResult:
    """What a search found, the most likely SID first."""

    sids_BWT: Tensor
    """Live SIDs, no one twice, int64; −1 where not valid."""
    slots_BW: Tensor
    """Slot of each SID's ad, int64; −1 where not valid."""
    log_probs_BW: Tensor
    """`Σ_t log p(s_t | s_<t, X)` over the full vocabulary of each level, falling; −inf where not valid."""
    valid_BW: Tensor
    """False behind the end of a list that is shorter than the width."""
    level_us: tuple[int, ...]
    """Microseconds that each level took for the whole batch."""
    paths: PathStates
    """States of the last level's parents, from which `expected_ecpm_of_beams` takes one more step."""
    parents_BW: Tensor
    """The parent of each SID among them."""


@torch.inference_mode()
def beam_search(model: LazyAr, context: Context, trie: TorchTrie, widths: tuple[int, ...]) -> BeamResult:
    """Find likely live SIDs for each request.

    The search follows only live children, but a token's log-probability counts the level's full vocabulary: it stays
    comparable when ads come and go, and equals `LazyAr.sid_log_probs`.

    Args:
        model: In eval mode.
        context: From `model.encode_context`, of B requests.
        trie: Live SIDs, on the model's device.
        widths: Beams to keep at each of the T levels, positive; W is the last one.

    Raises:
        ValueError: There is not one positive width per level, the trie has other levels than the model, or the model is
            in training mode, where dropout would make the search a lottery.
    """
    n_levels = model.config.n_levels
    if len(widths) != n_levels or min(widths) < 1:
        raise ValueError(f"widths: {widths}: give a positive width for each of the {n_levels} levels")
    if trie.n_levels != n_levels:
        raise ValueError(f"trie: {trie.n_levels} levels: build it for the {n_levels} levels of the model")
    if model.training:
        raise ValueError("model: in training mode: call model.eval() before a search")
    batch, device = context.batch_size, model.device

    paths = PathStates.at_bos(model)
    log_probs_BW = torch.zeros(batch, 1, device=device)
    nodes_BW = trie.root_1.expand(batch, 1)
    sids_BWT = nodes_BW.new_empty(batch, 1, 0)
    parents_BW, codes_BW = nodes_BW, None
    level_us, started = [], _now_us(device)
    for level, width in enumerate(widths):
        if level:
            paths = paths.advance(parents_BW)
        states_BWD = model.decode_step(context, level, codes_BW, paths.remember)
        logits_BWV = model.level_logits(level, states_BWD)
        children = trie.children(level, nodes_BW)
        log_p_BWM = logits_BWV.gather(-1, children.codes_BWM.long()) - logits_BWV.logsumexp(-1, keepdim=True)
        scores_BWM = (log_p_BWM + log_probs_BW[..., None]).masked_fill_(~children.live_BWM, -torch.inf)

        log_probs_BW, parents_BW, places_BW = _best(scores_BWM, width)
        codes_BW, nodes_BW = children.at(parents_BW, places_BW)
        past_BWT = sids_BWT.gather(1, parents_BW[..., None].expand(-1, -1, level))
        sids_BWT = torch.cat([past_BWT, codes_BW[..., None]], dim=-1)
        now = _now_us(device)
        level_us.append(now - started)
        started = now

    missing = widths[-1] - log_probs_BW.shape[1]  # fewer continuations than the width exist
    log_probs_BW = pad(log_probs_BW, (0, missing), value=-torch.inf)
    sids_BWT = pad(sids_BWT, (0, 0, 0, missing))
    nodes_BW = pad(nodes_BW, (0, missing))
    valid_BW = log_probs_BW > -torch.inf
    return BeamResult(
        sids_BWT=sids_BWT.masked_fill(~valid_BW[..., None], -1),
        slots_BW=nodes_BW.masked_fill(~valid_BW, -1),
        log_probs_BW=log_probs_BW,
        valid_BW=valid_BW,
        level_us=tuple(level_us),
        paths=paths,
        parents_BW=pad(parents_BW, (0, missing)),
    )


def _best(scores_BWM: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best `width` continuations of a request: score, parent beam, place among its children, `[B, ≤ width]`.

    Each beam first proposes its own best `width` (it could not place more), then one global top-k decides.
    """
    _, beams, fanout = scores_BWM.shape
    places_BWM = None
    if beams > 1 and fanout > width:
        scores_BWM, places_BWM = scores_BWM.topk(width, dim=-1)
    proposals = scores_BWM.shape[-1]
    best_BW, flat_BW = scores_BWM.flatten(1).topk(min(width, beams * proposals), dim=-1)
    places_BW = flat_BW % proposals if places_BWM is None else places_BWM.flatten(1).gather(1, flat_BW)
    return best_BW, flat_BW // proposals, places_BW


def _now_us(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels run behind the host: wait, or a level's time lands in the next
    return time.perf_counter_ns() // 1000


@torch.inference_mode()
def expected_ecpm(model: LazyAr, context: Context, sids_BNT: Tensor) -> Tensor:
    """Predict `E[eCPM | y, X]` of given SIDs (method.md §2.3).

    Args:
        model: In eval mode.
        context: From `model.encode_context`, of B requests.
        sids_BNT: Candidates of each request, int64; −1 in padding, whose value means nothing.

    Returns:
        Micros, `[B, N]`.
    """
    if model.config.n_ecpm_buckets == 1:  # one bucket holds every value: there is nothing to predict
        return model.ecpm_means.expand(sids_BNT.shape[:2])
    return model.expected_value(model.decode_paths(context, sids_BNT.clamp(min=0))[:, :, -1])


@torch.inference_mode()
def expected_ecpm_of_beams(model: LazyAr, context: Context, result: BeamResult, picked_BN: Tensor) -> Tensor:
    """Predict `E[eCPM | y, X]` of some beams of a search, taking only the one step that the search left out.

    Args:
        model: The model of the search, in eval mode.
        context: The context of the search.
        result: What the search returned.
        picked_BN: Numbers of beams of each request, int64, at most as many as the last width; the value of a beam that
            is not valid means nothing.

    Returns:
        Micros, `[B, N]`, the same as `expected_ecpm` gives.
    """
    if model.config.n_ecpm_buckets == 1:
        return model.ecpm_means.expand(picked_BN.shape)
    paths = result.paths.advance(result.parents_BW.gather(1, picked_BN))
    last_codes_BN = result.sids_BWT[..., -1].gather(1, picked_BN).clamp(min=0)
    return model.expected_value(model.decode_step(context, model.config.n_levels, last_codes_BN, paths.remember))
