"""Search in residual codebooks: the codes of a vector, and the next-nearest alternatives (method.md §1.2).

Shapes: N vectors, D coordinates, W prefixes kept, V_t codes of level t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.sid.nearest_centroids import distance_blocks, nearest


def quantise(levels: Sequence[NDArray[np.float32]], vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centroid of each level [V_t, D] to what the levels before left over, int64 [N, levels]."""
    codes_NT = np.empty((len(vectors_ND), len(levels)), dtype=np.int64)
    residual_ND = vectors_ND
    for depth, centroids_VD in enumerate(levels):
        codes_NT[:, depth] = nearest(residual_ND, centroids_VD, 1)[0][:, 0]
        residual_ND = residual_ND - centroids_VD[codes_NT[:, depth]]
    return codes_NT


def nearest_prefixes(
    levels: Sequence[NDArray[np.float32]], vectors_ND: NDArray[np.float32], n: int
) -> NDArray[np.int64]:
    """Return the n nearest prefixes that a beam of width n finds, the nearest first, int64 [N, n', levels].

    A prefix is as far as what it leaves over is long. n' is the smaller of n and the number of prefixes; a beam that is
    as wide as that finds them all.
    """
    widest = min(n, math.prod(len(centroids_VD) for centroids_VD in levels))
    codes_NWT = np.empty((len(vectors_ND), widest, len(levels)), dtype=np.int64)
    for row in range(len(vectors_ND)):
        codes_NWT[row] = _beam(levels, vectors_ND[row], n)
    return codes_NWT


def _beam(levels: Sequence[NDArray[np.float32]], vector_D: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    prefixes_WT = np.empty((1, 0), dtype=np.int64)
    residual_WD = vector_D[None, :]
    for centroids_VD in levels:
        size = len(centroids_VD)
        keep = min(n, len(prefixes_WT) * size)
        best = np.empty(0, dtype=np.int64)
        best_distance = np.empty(0, dtype=np.float32)
        for rows, distance_BV in distance_blocks(residual_WD, centroids_VD):
            distance = np.concatenate([best_distance, distance_BV.ravel()])
            place = np.concatenate([best, np.arange(rows.start * size, rows.stop * size)])
            order = np.argsort(distance, kind="stable")[:keep]
            best, best_distance = place[order], distance[order]
        parent, code = np.divmod(best, size)
        prefixes_WT = np.column_stack([prefixes_WT[parent], code])
        residual_WD = residual_WD[parent] - centroids_VD[code]
    return prefixes_WT
