"""Baselines of next-item prediction that evaluations report beside the model: popularity and the transition graph.

Both see the training part only, and count chosen events (clicks and conversions): what was merely shown tells what the
logging policy liked. An item that a user has chosen is not offered to them again, unless the training part holds users
who chose an item twice.

Transition graph. With C_{ij} the number of times item j followed item i by at most `WINDOW` steps in a user's sequence,
a pair d steps apart counting 1/d, a history h_1 … h_n scores item j by

    score(j) = Σ_{r=0}^{2} DECAY^r · C_{h_{n−r} j}

and what is left of the k places is filled by popularity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gr4ad_core.learning.data_folder import CLICK, Interactions
from numpy.typing import NDArray
from scipy import sparse

WINDOW = 3
LAST_ITEMS = 3
DECAY = 0.7
CHUNK = 2048  # histories scored at once: bounds the memory of the score matrix


def chosen_histories(
    interactions: Interactions, users: NDArray[np.int64], targets: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Return the items that each user chose before a target event, oldest first.

    Args:
        interactions: Everything.
        users: Users, as indices, [M].
        targets: Their target events, as indices into the events, [M].
    """
    chosen = interactions.behaviors >= CLICK
    return [
        interactions.items[start:end][chosen[start:end]]
        for start, end in zip(interactions.offsets[users], targets, strict=True)
    ]


def popularity_counts(train: Interactions) -> NDArray[np.int64]:
    """Return how often each item was chosen, [items]."""
    return np.bincount(train.items[train.behaviors >= CLICK], minlength=len(train.item_ids))


def popularity_rank(
    train: Interactions, k: int, histories: Sequence[NDArray[np.int64]] | None = None
) -> NDArray[np.int64]:
    """Return the k most chosen items, ties by item index.

    Args:
        train: Training part.
        k: Places.
        histories: Users' chosen items; given, each user gets a row of their own.

    Returns:
        Item indices, [k], or [users, k] with histories; −1 where there is no item left.
    """
    order = np.argsort(-popularity_counts(train), kind="stable")
    if histories is None:
        return _padded(order[:k], k)
    return np.stack([_first_unseen(order, history, k) for history in _left_out(train, histories)])


def transition_counts(train: Interactions, window: int = WINDOW) -> sparse.csr_array:
    """Return C of the module's docstring, a sparse [items, items] float32 array."""
    chosen = train.behaviors >= CLICK
    items = train.items[chosen]
    users = np.repeat(np.arange(len(train.user_ids)), np.diff(train.offsets))[chosen]
    rows, columns, weights = [], [], []
    for distance in range(1, window + 1):
        same_user = users[distance:] == users[:-distance]
        rows.append(items[:-distance][same_user])
        columns.append(items[distance:][same_user])
        weights.append(np.full(int(same_user.sum()), 1.0 / distance, dtype=np.float32))
    n = len(train.item_ids)
    pairs = (np.concatenate(rows), np.concatenate(columns))
    return sparse.coo_array((np.concatenate(weights), pairs), shape=(n, n)).tocsr()


def transition_graph_rank(train: Interactions, histories: Sequence[NDArray[np.int64]], k: int) -> NDArray[np.int64]:
    """Rank items by the transition graph of the training part.

    Args:
        train: Training part.
        histories: Users' chosen items before the target, oldest first, as item indices.
        k: Places.

    Returns:
        Item indices, the best first, [users, k]; −1 where there is no item left.
    """
    counts = transition_counts(train)
    order = np.argsort(-popularity_counts(train), kind="stable")
    left_out = _left_out(train, histories)
    ranked = np.full((len(histories), k), -1, dtype=np.int64)
    for start in range(0, len(histories), CHUNK):
        chunk = histories[start : start + CHUNK]
        scores = (_last_items(chunk, len(train.item_ids)) @ counts).tocsr()
        for row, seen in enumerate(left_out[start : start + CHUNK]):
            begin, end = scores.indptr[row], scores.indptr[row + 1]
            ranked[start + row] = _best(scores.indices[begin:end], scores.data[begin:end], seen, order, k)
    return ranked


def _left_out(train: Interactions, histories: Sequence[NDArray[np.int64]]) -> Sequence[NDArray[np.int64]]:
    """Return what each user is not offered: the history, or nothing where users choose items again."""
    chosen = train.behaviors >= CLICK
    users = np.repeat(np.arange(len(train.user_ids)), np.diff(train.offsets))[chosen]
    pairs = users * len(train.item_ids) + train.items[chosen]
    if len(np.unique(pairs)) == len(pairs):
        return histories
    return [np.zeros(0, dtype=np.int64)] * len(histories)


def _last_items(histories: Sequence[NDArray[np.int64]], n_items: int) -> sparse.csr_array:
    """Return the decayed last items of each history as a sparse [users, items] array."""
    rows = [row for row, history in enumerate(histories) for _ in history[-LAST_ITEMS:]]
    columns = [int(item) for history in histories for item in history[: -LAST_ITEMS - 1 : -1]]
    weights = [DECAY**age for history in histories for age in range(min(len(history), LAST_ITEMS))]
    matrix = sparse.coo_array((np.array(weights, dtype=np.float32), (rows, columns)), shape=(len(histories), n_items))
    return matrix.tocsr()


def _best(
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    seen: NDArray[np.int64],
    popular: NDArray[np.int64],
    k: int,
) -> NDArray[np.int64]:
    unseen = ~np.isin(items, seen)
    items, scores = items[unseen], scores[unseen]
    best = items[np.lexsort((items, -scores))[:k]].astype(np.int64)
    if len(best) == k:
        return best
    return _padded(np.concatenate([best, _first_unseen(popular, np.concatenate([seen, best]), k)]), k)


def _first_unseen(order: NDArray[np.int64], seen: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    head = order[: k + len(seen)]
    return _padded(head[~np.isin(head, seen)], k)


def _padded(items: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    return np.concatenate([items[:k], np.full(max(k - len(items), 0), -1, dtype=np.int64)])
