"""A stable match of points with centroids of limited capacity.

Points propose to centroids in the order of their cost; a full centroid keeps the cheapest and rejects the others, who
propose elsewhere (deferred acceptance, Gale and Shapley 1962). In the end no point and centroid would both rather have
each other, hence the match does not depend on the order of the points, apart from exact ties.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.sid.nearest_centroids import cheapest, cost_blocks


def capacity_match(
    points_ND: NDArray[np.float32],
    centroids_KD: NDArray[np.float32],
    prices_K: NDArray[np.float32],
    capacity: int,
    n_candidates: int,
) -> NDArray[np.int64]:
    """Return a centroid for each point, int64 [N], none for more than `capacity` points.

    Args:
        points_ND: Points.
        centroids_KD: Centroids.
        prices_K: Added to the squared distances.
        capacity: Points that a centroid takes.
        n_candidates: Cheapest centroids that are looked up at once; more cost memory, fewer cost time.

    Raises:
        ValueError: The capacity of all centroids together is below the number of points.
    """
    n_points, k = len(points_ND), len(centroids_KD)
    if capacity * k < n_points:
        raise ValueError(f"capacity: {capacity}: {k} centroids need at least {-(-n_points // k)} for {n_points} points")
    candidate_NM, candidate_cost_NM = cheapest(points_ND, centroids_KD, prices_K, n_candidates)
    members_KC = np.full((k, capacity), -1, dtype=np.int64)
    # A centroid is open to whoever costs less than this: the costliest it holds once it is full.
    threshold_K = np.full(k, np.inf, dtype=np.float32)
    label_N = np.full(n_points, -1, dtype=np.int64)
    cost_N = np.zeros(n_points, dtype=np.float32)
    seeking = np.arange(n_points)
    while seeking.size:
        open_SM = candidate_cost_NM[seeking] < threshold_K[candidate_NM[seeking]]
        first_S = open_SM.argmax(axis=1)
        label_N[seeking] = candidate_NM[seeking, first_S]
        cost_N[seeking] = candidate_cost_NM[seeking, first_S]
        lost = seeking[~open_SM.any(axis=1)]
        if lost.size:
            label_N[lost], cost_N[lost] = _cheapest_open(points_ND[lost], centroids_KD, prices_K, threshold_K)
        seeking = _keep_cheapest(seeking, label_N, cost_N, members_KC, threshold_K)
    return label_N


def _cheapest_open(
    points_SD: NDArray[np.float32],
    centroids_KD: NDArray[np.float32],
    prices_K: NDArray[np.float32],
    threshold_K: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each point's cheapest centroid that would take it, and the cost; one always would, as some have room."""
    label_S = np.empty(len(points_SD), dtype=np.int64)
    cost_S = np.empty(len(points_SD), dtype=np.float32)
    for rows, cost_BK in cost_blocks(points_SD, centroids_KD, prices_K):
        cost_BK[cost_BK >= threshold_K] = np.inf
        label_S[rows] = cost_BK.argmin(axis=1)
        cost_S[rows] = cost_BK.min(axis=1)
    return label_S, cost_S


def _keep_cheapest(
    proposing: NDArray[np.int64],
    label_N: NDArray[np.int64],
    cost_N: NDArray[np.float32],
    members_KC: NDArray[np.int64],
    threshold_K: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Let centroids choose among their members and those who propose; update both arrays, return the rejected."""
    capacity = members_KC.shape[1]
    asked_A, place_P = np.unique(label_N[proposing], return_inverse=True)
    old_AC = members_KC[asked_A]
    point = np.concatenate([old_AC[old_AC >= 0], proposing])
    place = np.concatenate([np.nonzero(old_AC >= 0)[0], place_P])
    order = np.lexsort((point, cost_N[point], place))
    point, place = point[order], place[order]
    rank = np.arange(len(point)) - np.searchsorted(place, np.arange(len(asked_A)))[place]
    kept = rank < capacity
    new_AC = np.full_like(old_AC, -1)
    new_AC[place[kept], rank[kept]] = point[kept]
    members_KC[asked_A] = new_AC
    full = new_AC[:, -1] >= 0
    threshold_K[asked_A[full]] = cost_N[new_AC[full, -1]]
    return point[~kept]
