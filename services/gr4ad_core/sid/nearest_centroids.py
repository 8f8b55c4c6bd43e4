"""The cheapest centroids of each point, by squared distance plus the centroid's price, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_ELEMENTS = 1 << 23  # of one block of costs: 32 MiB of float32


def cost_blocks(
    points_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32], prices_K: NDArray[np.float32]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield rows and their costs `‖x − c_j‖² + price_j`, float32 [rows, k], in blocks of bounded size."""
    offset_K = np.einsum("kd,kd->k", centroids_KD, centroids_KD) + prices_K
    rows = max(1, BLOCK_ELEMENTS // len(centroids_KD))
    for start in range(0, len(points_ND), rows):
        block_BD = points_ND[start : start + rows]
        cost_BK = block_BD @ centroids_KD.T
        cost_BK *= -2
        cost_BK += offset_K
        cost_BK += np.einsum("bd,bd->b", block_BD, block_BD)[:, None]
        yield slice(start, start + len(block_BD)), cost_BK


def cheapest(
    points_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32], prices_K: NDArray[np.float32], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each point's `min(n, k)` cheapest centroids, the cheapest first, and their costs: [N, n] each."""
    n = min(n, len(centroids_KD))
    nearest_NM = np.empty((len(points_ND), n), dtype=np.int64)
    cost_NM = np.empty((len(points_ND), n), dtype=np.float32)
    for rows, cost_BK in cost_blocks(points_ND, centroids_KD, prices_K):
        if n == 1:
            found = cost_BK.argmin(axis=1)[:, None]
        else:
            found = np.argpartition(cost_BK, n - 1, axis=1)[:, :n] if n < len(centroids_KD) else _all(cost_BK)
            # Rising index first, so that equal costs keep the lower index, as argmin does.
            found = np.sort(found, axis=1)
            order = np.take_along_axis(cost_BK, found, axis=1).argsort(axis=1, kind="stable")
            found = np.take_along_axis(found, order, axis=1)
        nearest_NM[rows] = found
        cost_NM[rows] = np.take_along_axis(cost_BK, found, axis=1)
    return nearest_NM, cost_NM


def _all(cost_BK: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(cost_BK.shape[1]), cost_BK.shape)
