"""Balanced k-means: clusters of nearly equal size (method.md §1.2).

    minimise  Σ_i ‖x_i − c_label(i)‖²   subject to   |{i : label(i) = j}| ≤ ⌈N/k⌉

Lloyd's iterations with `capacity_match` in place of the nearest centroid. Centroids then move to where each has its
share of the points, so that the plain nearest centroid of a later point is a balanced choice as well.

Shapes: N points, S sampled points, D coordinates, k clusters. Nothing of size N × k is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gr4ad_core.sid.capacity_match import capacity_match

SAMPLE_PER_CLUSTER = 64  # points per cluster beyond which centroids hardly move


@dataclass(frozen=True, slots=True)
class Clustering:
    """A balanced clustering.

    Attributes:
        centroids: Float32 [k, D].
        labels: Cluster of each point, int64 [N]; none occurs more than ceil(N/k) times.
    """

    centroids: NDArray[np.float32]
    labels: NDArray[np.int64]


def balanced_kmeans(points: NDArray[np.float32], k: int, seed: int, iterations: int = 12) -> Clustering:
    """Cluster points [N, D] into k clusters of at most ceil(N/k) points; the same input gives the same bytes.

    With fewer points than clusters the centroids left over lie at points too, ready for later points.

    Raises:
        ValueError: There is no point, a number is not finite, or `k` or `iterations` is not positive.
    """
    centroids_KD = balanced_centroids(points, k, seed, iterations)
    points_ND = np.ascontiguousarray(points, dtype=np.float32)
    return Clustering(centroids_KD, capacity_match(points_ND, centroids_KD, _share(points_ND, k)))


def balanced_centroids(points: NDArray[np.float32], k: int, seed: int, iterations: int = 12) -> NDArray[np.float32]:
    """Return the centroids of `balanced_kmeans`, float32 [k, D], without a label for each point.

    Raises:
        ValueError: As `balanced_kmeans` does.
    """
    points_ND = np.ascontiguousarray(points, dtype=np.float32)
    if points_ND.ndim != 2 or points_ND.size == 0:
        raise ValueError(f"points: shape {points_ND.shape}: give at least one point, as [N, D]")
    if not np.isfinite(points_ND).all():
        row = int(np.flatnonzero(~np.isfinite(points_ND).all(axis=1))[0])
        raise ValueError(f"points[{row}]: NaN or infinite: give finite numbers")
    if k < 1:
        raise ValueError(f"k: {k}: give at least one cluster")
    if iterations < 1:
        raise ValueError(f"iterations: {iterations}: give at least one")
    rng = np.random.default_rng(seed)
    sample_SD = sample(points_ND, SAMPLE_PER_CLUSTER * k, rng)
    centroids_KD = _first_centroids(sample_SD, k, rng)
    for _ in range(iterations):
        centroids_KD = _means(sample_SD, capacity_match(sample_SD, centroids_KD, _share(sample_SD, k)), centroids_KD)
    return centroids_KD


def _share(points_ND: NDArray[np.float32], k: int) -> int:
    return -(-len(points_ND) // k)


def sample(points: NDArray[np.float32], limit: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return `limit` of the points [N, D], drawn without repetition, in their order; all where they are no more."""
    if len(points) <= limit:
        return points
    return points[np.sort(rng.choice(len(points), limit, replace=False))]


def _first_centroids(points_ND: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw k points, each once before any is drawn again.

    A careful seeding (k-means++) is not worth its k passes: idle centroids are given points by the capacities.
    """
    rounds = [rng.permutation(len(points_ND)) for _ in range(-(-k // len(points_ND)))]
    return points_ND[np.concatenate(rounds)[:k]]


def _means(
    points_ND: NDArray[np.float32], labels_N: NDArray[np.int64], previous_KD: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the mean of each cluster, or its previous centroid where it is empty."""
    k = len(previous_KD)
    sizes_K = np.bincount(labels_N, minlength=k)
    members_KN = sparse.csr_array(
        (np.ones(len(labels_N), dtype=np.float32), (labels_N, np.arange(len(labels_N)))), shape=(k, len(labels_N))
    )
    means_KD = (members_KN @ points_ND) / np.maximum(sizes_K, 1)[:, None]
    return np.where(sizes_K[:, None] > 0, means_KD, previous_KD).astype(np.float32)
