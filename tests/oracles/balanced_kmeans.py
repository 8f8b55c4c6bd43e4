"""Balanced assignment, one proposal at a time."""

from __future__ import annotations

import numpy as np


def distances(points: np.ndarray, centroids: np.ndarray) -> list[list[float]]:
    """Squared distances, by coordinates."""
    return [
        [sum((float(a) - float(b)) ** 2 for a, b in zip(point, centroid, strict=True)) for centroid in centroids]
        for point in points
    ]


def propose_one_by_one(distance: list[list[float]], capacity: int) -> list[int]:
    """Gale and Shapley's deferred acceptance: a free point asks the nearest centroid that has not refused it yet."""
    wishes = [sorted(range(len(row)), key=lambda j, row=row: (row[j], j)) for row in distance]
    held: dict[int, list[int]] = {j: [] for j in range(len(distance[0]))}
    free = list(range(len(distance)))
    while free:
        point = free.pop()
        centroid = wishes[point].pop(0)
        held[centroid].append(point)
        if len(held[centroid]) > capacity:
            refused = max(held[centroid], key=lambda i: (distance[i][centroid], i))
            held[centroid].remove(refused)
            free.append(refused)
    labels = [-1] * len(distance)
    for centroid, points in held.items():
        for point in points:
            labels[point] = centroid
    return labels


def blocking_pairs(distance: list[list[float]], labels: list[int], capacity: int, margin: float) -> list[tuple]:
    """Pairs of a point and a centroid that would both rather have each other, by more than `margin`."""
    found = []
    for point, row in enumerate(distance):
        for centroid, length in enumerate(row):
            if length >= row[labels[point]] - margin:
                continue
            members = [i for i, label in enumerate(labels) if label == centroid]
            if len(members) < capacity or any(distance[i][centroid] > length + margin for i in members):
                found.append((point, centroid))
    return found
