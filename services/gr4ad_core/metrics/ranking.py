"""Recall and NDCG of ranked lists against one target each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def recall_at_k(ranked: NDArray[np.int64], target: NDArray[np.int64], ks: Sequence[int]) -> dict[int, float]:
    """Return the share of lists that hold their target among the first k, by k.

    Args:
        ranked: Item indices, the best first, [N, K]; -1 is no item.
        target: The item to find, [N].
        ks: Cut-offs, 1 or more; a list shorter than k counts as it is.

    Raises:
        ValueError: The shapes do not fit, there is no list, or a target or cut-off is out of range.
    """
    rank_N = _target_rank(ranked, target, ks)
    return {k: float((rank_N < k).mean()) for k in ks}


def ndcg_at_k(ranked: NDArray[np.int64], target: NDArray[np.int64], ks: Sequence[int]) -> dict[int, float]:
    """Return the mean of 1 / log2(2 + r) over lists, r the target's rank from 0, and 0 from rank k on, by k.

    With one relevant item the ideal gain is 1, so that this is the NDCG. Arguments and errors as in `recall_at_k`.
    """
    rank_N = _target_rank(ranked, target, ks)
    gain_N = 1.0 / np.log2(2.0 + rank_N)
    return {k: float(np.where(rank_N < k, gain_N, 0.0).mean()) for k in ks}


def _target_rank(ranked: NDArray[np.int64], target: NDArray[np.int64], ks: Sequence[int]) -> NDArray[np.float64]:
    """Return the first position of each target in its list, infinite where it is absent, [N]."""
    ranked_NK, target_N = np.asarray(ranked), np.asarray(target)
    if ranked_NK.ndim != 2 or target_N.shape != ranked_NK.shape[:1]:
        raise ValueError(f"target: shape {target_N.shape} for ranked {ranked_NK.shape}: give one target per list")
    if not len(ranked_NK):
        raise ValueError("ranked: empty: give at least one list")
    if (target_N < 0).any():
        row = int(np.flatnonzero(target_N < 0)[0])
        raise ValueError(f"target[{row}]: {target_N[row]}: give an item index of 0 or more, -1 means no item")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks: {list(ks)}: give cut-offs of 1 or more")
    hit_NK = ranked_NK == target_N[:, None]
    if not ranked_NK.shape[1]:
        return np.full(len(target_N), np.inf)
    return np.where(hit_NK.any(axis=1), hit_NK.argmax(axis=1), np.inf)
