"""Search in residual codebooks: the codes of a vector, and the next-cheapest alternatives (method.md §1.2).

Shapes: N vectors, D coordinates, W prefixes kept, V_t codes of level t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.sid.nearest_centroids import cheapest, cost_blocks


@dataclass(frozen=True, slots=True)
class SemanticLevel:
    """Centroids of one level, float32 [V, D], and what each costs beside its squared distance, float32 [V]."""

    centroids: NDArray[np.float32]
    prices: NDArray[np.float32]


def quantise(levels: Sequence[SemanticLevel], vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the cheapest code of each level for what the levels before left over, int64 [N, levels]."""
    codes_NT = np.empty((len(vectors_ND), len(levels)), dtype=np.int64)
    residual_ND = vectors_ND
    for depth, level in enumerate(levels):
        codes_NT[:, depth] = cheapest(residual_ND, level.centroids, level.prices, 1)[0][:, 0]
        residual_ND = residual_ND - level.centroids[codes_NT[:, depth]]
    return codes_NT


def nearest_prefixes(
    levels: Sequence[SemanticLevel], vectors_ND: NDArray[np.float32], n: int
) -> NDArray[np.int64]:
    """Return the n cheapest prefixes that a beam of width n finds, the cheapest first, int64 [N, n', levels].

    A prefix costs the squared distance of what it leaves over, plus its prices. n' is the smaller of n and the number
    of prefixes; a beam that is as wide as that finds them all.
    """
    widest = min(n, int(np.prod([len(level.prices) for level in levels], dtype=object)))
    codes_NWT = np.empty((len(vectors_ND), widest, len(levels)), dtype=np.int64)
    for row in range(len(vectors_ND)):
        codes_NWT[row] = _beam(levels, vectors_ND[row], n)
    return codes_NWT


def _beam(levels: Sequence[SemanticLevel], vector_D: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    prefixes_WT = np.empty((1, 0), dtype=np.int64)
    residual_WD = vector_D[None, :]
    spent_W = np.zeros(1, dtype=np.float32)  # prices so far
    for level in levels:
        size = len(level.prices)
        keep = min(n, len(prefixes_WT) * size)
        best = np.empty(0, dtype=np.int64)
        best_cost = np.empty(0, dtype=np.float32)
        for rows, cost_BV in cost_blocks(residual_WD, level.centroids, level.prices):
            cost = np.concatenate([best_cost, (cost_BV + spent_W[rows, None]).ravel()])
            place = np.concatenate([best, np.arange(rows.start * size, rows.stop * size)])
            order = np.argsort(cost, kind="stable")[:keep]
            best, best_cost = place[order], cost[order]
        parent, code = np.divmod(best, size)
        prefixes_WT = np.column_stack([prefixes_WT[parent], code])
        spent_W = spent_W[parent] + level.prices[code]
        residual_WD = residual_WD[parent] - level.centroids[code]
    return prefixes_WT
