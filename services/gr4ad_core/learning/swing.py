"""Swing: how strongly two items belong together, by the pairs of users who chose both (method.md §1.1).

    swing(i, j) = Σ_{u<v ∈ U_i ∩ U_j}  w_u w_v / (α + |I_u ∩ I_v|),     w_u = |I_u|^(−1/2)

Two users who share much else say little about i and j; two who share hardly anything else say much.

Shapes: U users, I items, P pairs of users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gr4ad_core.learning.interaction_rows import CLICK, Interactions

ALPHA = 1.0
USERS_PER_ITEM = 512  # of an item that more have chosen, as many are drawn: pairs grow with the square
CHUNK = 1024  # users whose pairs are looked at together


def swing(interactions: Interactions, seed: int, alpha: float = ALPHA) -> sparse.csr_array:
    """Return the strength of every pair of items, float32 sparse [I, I], symmetric, with an empty diagonal.

    Args:
        interactions: Training part; clicks and conversions count, each item once a user.
        seed: Of the users drawn for items that many have chosen.
        alpha: Smoothing α, positive.

    Raises:
        ValueError: `alpha` is not positive.
    """
    if not alpha > 0.0:
        raise ValueError(f"alpha: {alpha}: give a positive number")
    chosen_UI = _chosen(interactions)
    weight_U = 1.0 / np.sqrt(np.maximum(np.diff(chosen_UI.indptr), 1))
    chosen_UI = _thinned(chosen_UI, np.random.default_rng(seed))
    by_item_IU = chosen_UI.T.tocsr()
    n_users, n_items = chosen_UI.shape
    strength_II = sparse.csr_array((n_items, n_items), dtype=np.float64)
    for start in range(0, n_users, CHUNK):
        shared = (chosen_UI[start : start + CHUNK] @ by_item_IU).tocoo()
        first_P, second_P = shared.row + start, shared.col
        # One shared item makes no pair of items.
        counted = (second_P > first_P) & (shared.data >= 2)
        first_P, second_P, shared_P = first_P[counted], second_P[counted], shared.data[counted]
        if not len(first_P):
            continue
        weight_P = weight_U[first_P] * weight_U[second_P] / (alpha + shared_P)
        both_PI = chosen_UI[first_P].multiply(chosen_UI[second_P]).tocsr()
        strength_II = strength_II + (both_PI.T * weight_P) @ both_PI
    strength_II = strength_II.tocsr().astype(np.float32)
    strength_II.setdiag(0.0)
    strength_II.eliminate_zeros()
    strength_II.sort_indices()
    return strength_II


def strongest(strength_II: sparse.csr_array, most: int) -> sparse.csr_array:
    """Return the `most` strongest partners of each item, float32 sparse [I, I]; ties go to the lower item."""
    indptr, columns, values = [0], [], []
    for start, stop in zip(strength_II.indptr[:-1], strength_II.indptr[1:], strict=True):
        best = start + np.argsort(-strength_II.data[start:stop], kind="stable")[:most]
        best.sort()
        columns.append(strength_II.indices[best])
        values.append(strength_II.data[best])
        indptr.append(indptr[-1] + len(best))
    return sparse.csr_array((np.concatenate(values), np.concatenate(columns), indptr), shape=strength_II.shape)


def _chosen(interactions: Interactions) -> sparse.csr_array:
    """Return what each user chose, 1.0 each, float64 sparse [U, I]."""
    chosen_N = interactions.behaviors >= CLICK
    users_N = np.repeat(np.arange(len(interactions.user_ids)), np.diff(interactions.offsets))[chosen_N]
    entries = (np.ones(len(users_N)), (users_N, interactions.items[chosen_N]))
    shape = (len(interactions.user_ids), len(interactions.item_ids))
    chosen_UI = sparse.coo_array(entries, shape=shape).tocsr()
    chosen_UI.data[:] = 1.0
    return chosen_UI


def _thinned(chosen_UI: sparse.csr_array, rng: np.random.Generator) -> sparse.csr_array:
    """Keep at most USERS_PER_ITEM users of each item."""
    by_item_IU = chosen_UI.T.tocsr()
    kept: list[NDArray[np.int64]] = []
    for start, stop in zip(by_item_IU.indptr[:-1], by_item_IU.indptr[1:], strict=True):
        places = np.arange(start, stop)
        kept.append(places if stop - start <= USERS_PER_ITEM else rng.choice(places, USERS_PER_ITEM, replace=False))
    places_N = np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)
    items_N = np.repeat(np.arange(by_item_IU.shape[0]), np.diff(by_item_IU.indptr))[places_N]
    entries = (np.ones(len(places_N)), (by_item_IU.indices[places_N], items_N))
    return sparse.coo_array(entries, shape=chosen_UI.shape).tocsr()
