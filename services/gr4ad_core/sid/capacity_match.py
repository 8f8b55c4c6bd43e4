"""A stable match of points with centroids of limited capacity.

Points propose to centroids, the nearest first; a full centroid keeps the nearest points and rejects the others, who
propose elsewhere (deferred acceptance, Gale and Shapley 1962). In the end no point and centroid would both rather have
each other, hence the match does not depend on the order of the points, apart from exact ties.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.sid.nearest_centroids import distance_blocks, nearest

CANDIDATES = 48  # centroids that a point looks up at once: enough that few points have to look again


def capacity_match(
    points_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32], capacity: int, n_candidates: int = CANDIDATES
) -> NDArray[np.int64]:
    """Return a centroid for each point, int64 [N], none for more than `capacity` points.

    Raises:
        ValueError: The capacity of all centroids together is below the number of points.
    """
    n_points, k = len(points_ND), len(centroids_KD)
    if capacity * k < n_points:
        raise ValueError(f"capacity: {capacity}: {k} centroids need at least {-(-n_points // k)} for {n_points} points")
    candidate_NM, candidate_distance_NM = nearest(points_ND, centroids_KD, n_candidates)
    members_KC = np.full((k, capacity), -1, dtype=np.int64)
    # A centroid is open to whoever is nearer than this: than the farthest it holds, once it is full.
    threshold_K = np.full(k, np.inf, dtype=np.float32)
    label_N = np.full(n_points, -1, dtype=np.int64)
    distance_N = np.zeros(n_points, dtype=np.float32)
    seeking = np.arange(n_points)
    while seeking.size:
        open_SM = candidate_distance_NM[seeking] < threshold_K[candidate_NM[seeking]]
        first_S = open_SM.argmax(axis=1)
        label_N[seeking] = candidate_NM[seeking, first_S]
        distance_N[seeking] = candidate_distance_NM[seeking, first_S]
        lost = seeking[~open_SM.any(axis=1)]
        if lost.size:
            label_N[lost], distance_N[lost] = _nearest_open(points_ND[lost], centroids_KD, threshold_K)
        seeking = _keep_nearest(seeking, label_N, distance_N, members_KC, threshold_K)
    return label_N


def _nearest_open(
    points_SD: NDArray[np.float32], centroids_KD: NDArray[np.float32], threshold_K: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each point's nearest centroid that would take it, and the distance; one always would: some have room."""
    label_S = np.empty(len(points_SD), dtype=np.int64)
    distance_S = np.empty(len(points_SD), dtype=np.float32)
    for rows, distance_BK in distance_blocks(points_SD, centroids_KD):
        distance_BK[distance_BK >= threshold_K] = np.inf
        label_S[rows] = distance_BK.argmin(axis=1)
        distance_S[rows] = distance_BK.min(axis=1)
    return label_S, distance_S


def _keep_nearest(
    proposing: NDArray[np.int64],
    label_N: NDArray[np.int64],
    distance_N: NDArray[np.float32],
    members_KC: NDArray[np.int64],
    threshold_K: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Let centroids choose among their members and those who propose; update both tables, return the rejected."""
    capacity = members_KC.shape[1]
    asked_A, place_P = np.unique(label_N[proposing], return_inverse=True)
    old_AC = members_KC[asked_A]
    point = np.concatenate([old_AC[old_AC >= 0], proposing])
    place = np.concatenate([np.nonzero(old_AC >= 0)[0], place_P])
    order = np.lexsort((point, distance_N[point], place))
    point, place = point[order], place[order]
    rank = np.arange(len(point)) - np.searchsorted(place, np.arange(len(asked_A)))[place]
    kept = rank < capacity
    new_AC = np.full_like(old_AC, -1)
    new_AC[place[kept], rank[kept]] = point[kept]
    members_KC[asked_A] = new_AC
    full = new_AC[:, -1] >= 0
    threshold_K[asked_A[full]] = distance_N[new_AC[full, -1]]
    rejected: NDArray[np.int64] = point[~kept]
    return rejected
