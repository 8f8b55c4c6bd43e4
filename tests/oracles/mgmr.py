"""Semantic IDs, one ad at a time (method.md §1.2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from gr4ad_core.sid.business_code import BusinessLevel, BusinessSignals

Prefix = tuple[int, ...]


def left_over(levels: Sequence[np.ndarray], vector: np.ndarray, prefix: Prefix) -> float:
    """Squared length of what a prefix leaves of a vector."""
    rest = np.asarray(vector, dtype=np.float64)
    for centroids, code in zip(levels, prefix, strict=True):
        rest = rest - centroids[code]
    return float((rest**2).sum())


def nearest_prefix(levels: Sequence[np.ndarray], vector: np.ndarray) -> Prefix:
    """The nearest centroid of each level in turn."""
    prefix: Prefix = ()
    for depth in range(len(levels)):
        lengths = [left_over(levels[: depth + 1], vector, (*prefix, code)) for code in range(len(levels[depth]))]
        prefix = (*prefix, int(np.argmin(lengths)))
    return prefix


def prefixes_by_length(levels: Sequence[np.ndarray], vector: np.ndarray) -> list[Prefix]:
    """All prefixes, the nearest first."""
    every = itertools.product(*(range(len(centroids)) for centroids in levels))
    return sorted(every, key=lambda prefix: left_over(levels, vector, prefix))


def assign(
    levels: Sequence[np.ndarray],
    business: BusinessLevel,
    vectors: np.ndarray,
    signals: Sequence[BusinessSignals],
    taken: Callable[[Prefix], set[int]],
) -> list[Prefix]:
    """Give each ad the first free code of its nearest prefix; ads for whose prefix there is none are not handled."""
    used: set[Prefix] = set()
    sids = []
    for vector, signal in zip(vectors, signals, strict=True):
        prefix = nearest_prefix(levels, vector)
        free = (
            code for code in business.probe_codes(signal) if code not in taken(prefix) and (*prefix, code) not in used
        )
        sids.append((*prefix, next(free)))
        used.add(sids[-1])
    return sids
