"""Recall, NDCG and the figures of a tokeniser, counted by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def recall(ranked: Sequence[Sequence[int]], target: Sequence[int], k: int) -> float:
    """Share of lists with the target among the first k."""
    return sum(1 for items, wanted in zip(ranked, target, strict=True) if wanted in list(items)[:k]) / len(target)


def ndcg(ranked: Sequence[Sequence[int]], target: Sequence[int], k: int) -> float:
    """Discounted gain of the first occurrence of the target over the ideal one's, averaged."""
    total = 0.0
    for items, wanted in zip(ranked, target, strict=True):
        for position, item in enumerate(list(items)[:k], start=1):
            if item == wanted:
                total += 1 / math.log2(1 + position)
                break
    return total / len(target)


def sid_figures(sids: Sequence[tuple[int, ...]], level_sizes: Sequence[int]) -> tuple[float, float, float]:
    """Compression, collision and utilisation."""
    ads_of = Counter(sids)
    colliding = sum(1 for sid in sids if ads_of[sid] > 1)
    return len(sids) / len(ads_of), colliding / len(sids), len(ads_of) / math.prod(level_sizes)
