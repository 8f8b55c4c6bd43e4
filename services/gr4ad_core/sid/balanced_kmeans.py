"""Balanced k-means: clusters of nearly equal size (method.md §1.2).

    minimise  Σ_i ‖x_i − c_label(i)‖²   subject to   |{i : label(i) = j}| ≤ ⌈N/k⌉

Lloyd's iterations with prices: cluster j costs a point ‖x − c_j‖² + price_j, and Sinkhorn steps over each point's
cheapest clusters raise the price of the crowded ones. Prices make the sizes nearly equal and keep the cells convex, so
that a point that comes later is placed by the same rule. The bound itself is kept by `capacity_match`.

Shapes: N points, D coordinates, k clusters, M candidate clusters of a point. Nothing of size N × k is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gr4ad_core.sid.capacity_match import capacity_match
from gr4ad_core.sid.nearest_centroids import cheapest

CANDIDATES = 24  # M: enough that a crowded region finds room among them
SAMPLE_PER_CLUSTER = 256  # points per cluster beyond which centroids hardly move
SINKHORN_STEPS = 8
# Entropy of the soft assignment, as a share of the mean squared distance to the nearest centroid.
TEMPERATURE = 0.1
# A cluster without demand would fall in price without end.
LEAST_DEMAND = 0.1


@dataclass(frozen=True, slots=True)
class Clustering:
    """A balanced clustering.

    Attributes:
        centroids: Float32 [k, D].
        prices: What a cluster costs beside its squared distance, float32 [k].
        labels: Cluster of each point, int64 [N]; none occurs more than ceil(N/k) times.
    """

    centroids: NDArray[np.float32]
    prices: NDArray[np.float32]
    labels: NDArray[np.int64]


def balanced_kmeans(points: NDArray[np.float32], k: int, seed: int, iterations: int = 15) -> Clustering:
    """Cluster points [N, D] into k clusters of at most ceil(N/k) points; the same input gives the same bytes.

    With fewer points than clusters the centroids left over lie at points too, ready for later points.

    Raises:
        ValueError: There is no point, a number is not finite, or `k` or `iterations` is not positive.
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
    sample_SD = _sample(points_ND, SAMPLE_PER_CLUSTER * k, rng)
    centroids_KD = _first_centroids(sample_SD, k, rng)
    prices_K = np.zeros(k, dtype=np.float32)
    for _ in range(iterations):
        nearest_SM, cost_SM = cheapest(sample_SD, centroids_KD, prices_K, CANDIDATES)
        changes_K = _price_changes(nearest_SM, cost_SM, k)
        chosen_S = (cost_SM + changes_K[nearest_SM]).argmin(axis=1)
        labels_S = nearest_SM[np.arange(len(sample_SD)), chosen_S]
        centroids_KD = _means(sample_SD, labels_S, centroids_KD)
        prices_K = prices_K + changes_K
    nearest_NM, cost_NM = cheapest(points_ND, centroids_KD, prices_K, CANDIDATES)
    prices_K = prices_K + _price_changes(nearest_NM, cost_NM, k)
    labels_N = capacity_match(points_ND, centroids_KD, prices_K, -(-len(points_ND) // k), CANDIDATES)
    return Clustering(centroids_KD, prices_K, labels_N)


def _sample(points_ND: NDArray[np.float32], limit: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if len(points_ND) <= limit:
        return points_ND
    return points_ND[np.sort(rng.choice(len(points_ND), limit, replace=False))]


def _first_centroids(points_ND: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw k points, each once before any is drawn again.

    A careful seeding (k-means++) is not worth its k passes: prices move idle centroids into crowded regions.
    """
    rounds = [rng.permutation(len(points_ND)) for _ in range(-(-k // len(points_ND)))]
    return points_ND[np.concatenate(rounds)[:k]]


def _price_changes(nearest_NM: NDArray[np.int64], cost_NM: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return what to add to the prices [k] so that the soft demand for each cluster comes near N/k.

    Sinkhorn's column update, `price_j += ε · log(demand_j · k / N)`, on the entropic assignment over the candidates.
    """
    changes_K = np.zeros(k, dtype=np.float32)
    n_points = len(nearest_NM)
    epsilon = TEMPERATURE * float(np.maximum(cost_NM[:, 0] - cost_NM[:, 0].min(), 0).mean())
    if epsilon <= 0:
        return changes_K
    for _ in range(SINKHORN_STEPS):
        logits_NM = -(cost_NM + changes_K[nearest_NM]) / epsilon
        share_NM = np.exp(logits_NM - logits_NM.max(axis=1, keepdims=True))
        share_NM /= share_NM.sum(axis=1, keepdims=True)
        demand_K = np.bincount(nearest_NM.ravel(), weights=share_NM.ravel(), minlength=k) * k / n_points
        changes_K += (epsilon * np.log(np.maximum(demand_K, LEAST_DEMAND))).astype(np.float32)
    return changes_K


def _means(
    points_ND: NDArray[np.float32], labels_N: NDArray[np.int64], previous_KD: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the mean of each cluster, or its previous centroid where it is empty."""
    k = len(previous_KD)
    sizes_K = np.bincount(labels_N, minlength=k)
    members_KN = sparse.csr_array(
        (np.ones(len(labels_N), dtype=np.float32), (labels_N, np.arange(len(labels_N)))), shape=(k, len(labels_N))
    )
    sums_KD = members_KN @ points_ND
    means_KD = np.where(sizes_K[:, None] > 0, sums_KD / np.maximum(sizes_K, 1)[:, None], previous_KD)
    return np.ascontiguousarray(means_KD, dtype=np.float32)
