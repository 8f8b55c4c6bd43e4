"""Beam search without one or several of the engine's tricks: what each is measured against.

All variants find the same SIDs; with every trick on, it is the engine's search written down again.

Shapes: B requests, W beams, R rows (B · W), P positions of a path so far, M children of the widest node, V codes of a
level, T SID levels, E keys and values side by side (2D), H heads, C context vectors, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from gr4ad_core.decoding.beam_search import PathStates
from gr4ad_core.decoding.constraints import Children, TorchTrie
from gr4ad_core.model.context_processor import SharedKeysValues
from gr4ad_core.model.lazy_ar import Context, LazyAr
from torch import Tensor

Remember = Callable[[int, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Tricks:
    """Which of the engine's tricks a search uses."""

    shared_context: bool = True
    """Beams of a request read one copy of the context's keys and values, as queries of one attention.

    Without: a beam is a row of the batch with its own copy of the keys and values of all groups of layers, and of the
    trunk's states; whenever beams are chosen, each row is copied from its parent's, as engines for text do when they
    reorder caches. The search starts with one row per request, not with as many as it will need.
    """
    path_rows: bool = True
    """A beam's past is a row number for each of its positions (`PathStates`).

    Without: every beam holds the keys and values of its path side by side, copied whenever beams are chosen.
    """
    pre_cut: bool = True
    """A beam proposes live children alone, at most as many as the width; one global top-k takes of the proposals.

    Without: log-probabilities of the level's full vocabulary, `[B, W, V]`, set to −inf where no child is live, then one
    global top-k over `W · V`. The look-up of the children is the same. The engine has three savings here: it gathers
    the logits of live children and works on `[B, W, M]`, does not write a softmax of the vocabulary, and where more
    children than the width are live, cuts them per beam first.
    """


@dataclass(frozen=True)
class Found:
    """What a search found, the most likely SID first."""

    sids_BWT: Tensor
    """int64; what is not valid means nothing."""
    log_probs_BW: Tensor
    """Falling; −inf where not valid."""


@dataclass(frozen=True)
class CopiedPaths:
    """Keys and values of each beam's own path, copied when beams are chosen: what `PathStates` saves."""

    kv_BWPE: list[Tensor]
    """Per autoregressive layer."""

    @classmethod
    def at_bos(cls, model: LazyAr, batch: int) -> CopiedPaths:
        """Start one beam per request, with no position yet."""
        return cls([model.bos.new_empty(batch, 1, 0, 2 * model.config.d_model) for _ in model.decoder])

    def advance(self, parents_BW: Tensor) -> CopiedPaths:
        """Give every beam a copy of its parent's path."""
        return CopiedPaths([_of_parents(kv_BWPE, parents_BW) for kv_BWPE in self.kv_BWPE])

    def remember(self, layer: int, kv_BWE: Tensor) -> Sequence[Tensor]:
        """Append this position's keys and values; return those of each beam's whole path, P times `[B, W, E]`."""
        self.kv_BWPE[layer] = torch.cat([self.kv_BWPE[layer], kv_BWE.unsqueeze(2)], dim=2)
        return self.kv_BWPE[layer].unbind(2)


@torch.inference_mode()
def plain_beam_search(
    model: LazyAr, context: Context, trie: TorchTrie, widths: tuple[int, ...], tricks: Tricks
) -> Found:
    """Find likely live SIDs as `beam_search` does, with some of its tricks.

    Args:
        model: In eval mode.
        context: From `model.encode_context`, of B requests.
        trie: Live SIDs.
        widths: Beams to keep at each of the T levels; W is the last one, or fewer where fewer continuations exist.
        tricks: Those to use.
    """
    batch = context.batch_size
    paths: PathStates | CopiedPaths = PathStates.at_bos(model) if tricks.path_rows else CopiedPaths.at_bos(model, batch)
    log_probs_BW = torch.zeros(batch, 1, device=model.device)
    nodes_BW = trie.root_1.expand(batch, 1)
    sids_BWT = nodes_BW.new_empty(batch, 1, 0)
    parents_BW, codes_BW = nodes_BW, None
    cut = _pre_cut if tricks.pre_cut else _dense_cut
    for level, width in enumerate(widths):
        if level:
            paths = paths.advance(parents_BW)
            if not tricks.shared_context:
                context = _rows_of_parents(context, parents_BW)
        step = model.decode_step if tricks.shared_context else _step_of_rows(model)
        states_BWD = step(context, level, codes_BW, paths.remember)
        children = trie.children(level, nodes_BW)
        logits_BWV = model.level_logits(level, states_BWD)
        log_probs_BW, parents_BW, places_BW = cut(logits_BWV, log_probs_BW, children, width)
        codes_BW, nodes_BW = children.at(parents_BW, places_BW)
        sids_BWT = torch.cat([_of_parents(sids_BWT, parents_BW), codes_BW[..., None]], dim=-1)
    return Found(sids_BWT, log_probs_BW)


def _of_parents(x_BW: Tensor, parents_BN: Tensor) -> Tensor:
    """Copy what belongs to parents, `[B, W, …]`, to `[B, N, …]`."""
    batch, width = x_BW.shape[:2]
    rows_BN = torch.arange(batch, device=parents_BN.device)[:, None] * width + parents_BN
    return x_BW.flatten(0, 1).index_select(0, rows_BN.flatten()).view(*parents_BN.shape, *x_BW.shape[2:])


# --- a row of the batch per beam --------------------------------------------------------------------------------------


def _rows_of_parents(context: Context, parents_BN: Tensor) -> Context:
    """Copy a context of rows: one for every chosen beam, from its parent's."""
    batch = len(parents_BN)

    def copied(x_R: Tensor) -> Tensor:
        return _of_parents(x_R.view(batch, -1, *x_R.shape[1:]), parents_BN).flatten(0, 1)

    shared = context.shared
    rows = SharedKeysValues(
        keys_BHCK=tuple(map(copied, shared.keys_BHCK)),
        values_BHCK=tuple(map(copied, shared.values_BHCK)),
        bias_B11C=copied(shared.bias_B11C),
    )
    return replace(context, shared=rows, trunk_BPD=copied(context.trunk_BPD))


def _step_of_rows(model: LazyAr) -> Callable[[Context, int, Tensor | None, Remember], Tensor]:
    """Return a step that decodes every beam as a row of the batch, with a context of as many rows."""

    def step(context: Context, level: int, codes_BW: Tensor | None, remember: Remember) -> Tensor:
        rows = context.batch_size
        shape = (rows, 1) if codes_BW is None else codes_BW.shape

        def remember_rows(layer: int, kv_R1E: Tensor) -> Sequence[Tensor]:
            path = remember(layer, kv_R1E.reshape(*shape, -1))
            return [kv_BWE.expand(*shape, -1).flatten(0, 1).unsqueeze(1) for kv_BWE in path]

        codes_R1 = None if codes_BW is None else codes_BW.reshape(rows, 1)
        return model.decode_step(context, level, codes_R1, remember_rows).view(*shape, -1)

    return step


# --- which continuations stay -----------------------------------------------------------------------------------------


def _pre_cut(logits_BWV: Tensor, log_probs_BW: Tensor, children: Children, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose as the engine does; return score, parent beam and place among its children, `[B, ≤ width]`."""
    log_p_BWM = logits_BWV.gather(-1, children.codes_BWM.long()) - logits_BWV.logsumexp(-1, keepdim=True)
    scores_BWM = (log_p_BWM + log_probs_BW[..., None]).masked_fill_(~children.live_BWM, -torch.inf)
    proposals = min(width, scores_BWM.shape[-1])
    scores_BWN, places_BWN = (
        scores_BWM.topk(proposals, dim=-1) if proposals < scores_BWM.shape[-1] else (scores_BWM, None)
    )
    best_BW, flat_BW = scores_BWN.flatten(1).topk(min(width, scores_BWN[0].numel()), dim=-1)
    places_BW = flat_BW % proposals if places_BWN is None else places_BWN.flatten(1).gather(1, flat_BW)
    return best_BW, flat_BW // proposals, places_BW


def _dense_cut(
    logits_BWV: Tensor, log_probs_BW: Tensor, children: Children, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose by one top-k over beams and the full vocabulary; return the same."""
    vocabulary = logits_BWV.shape[-1]
    row_N, beam_N, rank_N = children.live_BWM.nonzero(as_tuple=True)
    codes_N = children.codes_BWM[row_N, beam_N, rank_N].long()
    places_BWV = codes_N.new_full(logits_BWV.shape, -1, dtype=torch.int32)  # −1: no live child has this code
    places_BWV[row_N, beam_N, codes_N] = rank_N.int()
    scores_BWV = logits_BWV.log_softmax(-1) + log_probs_BW[..., None]
    scores_BWV = scores_BWV.masked_fill_(places_BWV < 0, -torch.inf)
    best_BW, flat_BW = scores_BWV.flatten(1).topk(min(width, scores_BWV[0].numel()), dim=-1)
    places_BW = places_BWV.flatten(1).gather(1, flat_BW).long().clamp(min=0)
    return best_BW, flat_BW // vocabulary, places_BW
