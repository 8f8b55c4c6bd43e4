"""The paths that a list can be computed by, and what each gives to held-out users.

Shapes: M users, B users of a batch, W ads of a list, K of its best, T SID levels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from gr4ad_core.decoding.beam_search import BeamResult, beam_search, expected_ecpm
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.learning.held_out import first_hit
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.model.config import COMPUTE_TYPES
from gr4ad_core.model.context import ContextInputs
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.sid.trie import LiveTrie
from numpy.typing import NDArray

from gr4ad_tools.bench.decode.plain_search import Found, Tricks, plain_beam_search
from gr4ad_tools.bench.held_out_policy import BEAM_WIDTHS

REFERENCE: Final = "float32"
"""The path that the others are compared with."""
PLAIN: Final = "plain"
"""The search without any trick, in float32."""
PATHS: Final = (*COMPUTE_TYPES, PLAIN)
"""All of them: the engine in each type that `GR4AD_COMPUTE_TYPE` may name, and the plain search."""

K: Final = 10
WIDTH: Final = BEAM_WIDTHS[-1]
BATCH: Final = 32
"""Users searched together: bounds the memory of the plain search, which copies keys and values for every beam."""

Search = Callable[[ContextInputs, TorchTrie], BeamResult | Found]


@dataclass(frozen=True)
class Answers:
    """What one path gave to all users."""

    position_M: NDArray[np.int64]
    """Place (from 0) of the user's held-out ad in the list, W where it is not there."""
    best_MKT: NDArray[np.int64]
    """SIDs of the K most likely ads; −1 behind the end of a shorter list."""
    ecpm_M: NDArray[np.float64]
    """Mean eCPM of those K in micros, as the policy predicts it in float32, whichever path made the list."""


def search_of(path: str, model: LazyAr) -> Search:
    """Return how a path of `PATHS` finds ads by a policy in float32, which is left as it is."""
    if path == PLAIN:
        nothing = Tricks(shared_context=False, path_rows=False, pre_cut=False)
        return lambda inputs, trie: plain_beam_search(model, model.encode_context(inputs), trie, BEAM_WIDTHS, nothing)
    served = copy.deepcopy(model).for_serving(getattr(torch, path))
    return lambda inputs, trie: beam_search(served, served.encode_context(inputs), trie, BEAM_WIDTHS)


@torch.inference_mode()
def answer(
    path: str, model: LazyAr, targets: TrainingSet, on_answers: Callable[[int], None] = lambda users: None
) -> Answers:
    """Answer all users by one path.

    Args:
        path: One of `PATHS`.
        model: The policy in float32, in evaluation mode; it is left as it is.
        targets: Each user's held-out ad behind the user's history; all its `ad_sids_AT` are live.
        on_answers: Called after each batch with the number of its users.
    """
    search = search_of(path, model)
    trie = TorchTrie.from_view(LiveTrie.build(targets.ad_sids_AT, model.config.level_sizes).view, "cpu")
    parts = []
    for start in range(0, len(targets), BATCH):
        batch = targets.batch(np.arange(start, min(start + BATCH, len(targets))), model.config)
        found = search(batch.inputs, trie)
        valid_BW = found.log_probs_BW > -torch.inf
        position_B = first_hit(found.sids_BWT, valid_BW, batch.sids_BT)
        # The plain search does not fill a short list up to W, and a miss is told by the length that it has.
        position_B[position_B == valid_BW.shape[1]] = WIDTH
        valid_BK = valid_BW[:, :K]
        best_BKT = found.sids_BWT[:, :K].masked_fill(~valid_BK[..., None], -1)
        ecpm_BK = expected_ecpm(model, model.encode_context(batch.inputs), best_BKT).double()
        ecpm_B = ecpm_BK.where(valid_BK, 0.0).sum(1) / valid_BK.sum(1)
        parts.append((position_B, best_BKT.numpy(), ecpm_B.numpy()))
        on_answers(len(position_B))
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))
