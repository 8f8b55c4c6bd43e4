"""The nearest centroids of each point, block by block, so that the table of all distances is never held."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_ELEMENTS = 1 << 23  # of one block of distances: 32 MiB of float32


def distance_blocks(
    points_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield rows and their squared distances `‖x − c_j‖²`, float32 [rows, k], in blocks of bounded size."""
    square_K = np.einsum("kd,kd->k", centroids_KD, centroids_KD)
    rows = max(1, BLOCK_ELEMENTS // len(centroids_KD))
    for start in range(0, len(points_ND), rows):
        block_BD = points_ND[start : start + rows]
        distance_BK = block_BD @ centroids_KD.T
        distance_BK *= -2
        distance_BK += square_K
        distance_BK += np.einsum("bd,bd->b", block_BD, block_BD)[:, None]
        yield slice(start, start + len(block_BD)), distance_BK


def nearest(
    points_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each point's `min(n, k)` nearest centroids, the nearest first, and the squared distances: [N, n] each."""
    n = min(n, len(centroids_KD))
    found_NM = np.empty((len(points_ND), n), dtype=np.int64)
    distance_NM = np.empty((len(points_ND), n), dtype=np.float32)
    for rows, distance_BK in distance_blocks(points_ND, centroids_KD):
        if n == 1:
            found_BM = distance_BK.argmin(axis=1)[:, None]
        else:
            # Rising index first, so that equal distances keep the lower index, as argmin does.
            found_BM = np.sort(np.argpartition(distance_BK, n - 1, axis=1)[:, :n], axis=1)
            order = np.take_along_axis(distance_BK, found_BM, axis=1).argsort(axis=1, kind="stable")
            found_BM = np.take_along_axis(found_BM, order, axis=1)
        found_NM[rows] = found_BM
        distance_NM[rows] = np.take_along_axis(distance_BK, found_BM, axis=1)
    return found_NM, distance_NM
