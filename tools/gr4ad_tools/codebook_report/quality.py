"""What a codebook makes of a catalogue: what its levels leave over, who shares a prefix, and whether users agree.

Shapes: N ads, D coordinates, T levels, V_t codes of level t, M pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gr4ad_core.sid.codebook import Codebook
from numpy.typing import NDArray

CHUNK = 1024


def reconstruction_errors(codebook: Codebook, content_ND: NDArray[np.float32]) -> list[float]:
    """Return the share of the ads' squared length that is left over after each semantic level.

    Args:
        codebook: The codebook.
        content_ND: Content vectors of the ads.
    """
    codes_NT = codebook.quantise(content_ND)
    left_ND = codebook.ad_vectors(content_ND)
    whole = float(np.square(left_ND, dtype=np.float64).sum())
    errors = []
    for depth, centroids_VD in enumerate(codebook.levels):
        left_ND = left_ND - centroids_VD[codes_NT[:, depth]]
        errors.append(float(np.square(left_ND, dtype=np.float64).sum()) / whole)
    return errors


def largest_shares(sids_NT: NDArray[np.int64], level_sizes: Sequence[int]) -> list[float]:
    """Return how many ads the fullest code of each level holds, relative to an even spread."""
    return [
        float(np.bincount(sids_NT[:, level], minlength=size).max() * size / len(sids_NT))
        for level, size in enumerate(level_sizes)
    ]


def pair_recall(
    vectors_ND: NDArray[np.float32], pairs_M2: NDArray[np.int64], ks: Sequence[int]
) -> dict[int, NDArray[np.bool_]]:
    """Tell, for each k, which pairs' second ad is among the k nearest to the first by cosine, [M] each.

    The first ad itself is no candidate, and an ad as near as the second counts as nearer: ties win nothing.
    """
    unit_ND = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    nearer_M = np.empty(len(pairs_M2), dtype=np.int64)
    for start in range(0, len(pairs_M2), CHUNK):
        first_B, second_B = pairs_M2[start : start + CHUNK].T
        cosine_BN = unit_ND[first_B] @ unit_ND.T
        rows_B = np.arange(len(first_B))
        own_B = cosine_BN[rows_B, second_B]
        cosine_BN[rows_B, first_B] = -np.inf
        cosine_BN[rows_B, second_B] = -np.inf
        nearer_M[start : start + CHUNK] = (cosine_BN >= own_B[:, None]).sum(axis=1)
    return {k: nearer_M < k for k in ks}


@dataclass(frozen=True)
class Neighbours:
    """An ad and some of those that share a prefix of its SID.

    Attributes:
        ad: Number of the ad.
        sharing: Per prefix length, the longest first: how many others share exactly so many codes, and some of them.
    """

    ad: int
    sharing: dict[int, tuple[int, list[int]]]


def prefix_neighbours(sids_NT: NDArray[np.int64], ads: Sequence[int], most: int) -> list[Neighbours]:
    """Return who shares prefixes with some ads.

    Args:
        sids_NT: SIDs of all ads.
        ads: Numbers of the ads.
        most: Others to name at each length, in the order of the catalogue.
    """
    found = []
    for ad in ads:
        shared_N = np.logical_and.accumulate(sids_NT == sids_NT[ad], axis=1).sum(axis=1)
        shared_N[ad] = -1
        sharing = {}
        for length in range(sids_NT.shape[1] - 1, 0, -1):
            others = np.flatnonzero(shared_N == length)
            sharing[length] = (len(others), others[:most].tolist())
        found.append(Neighbours(int(ad), sharing))
    return found


def principal_plane(points_KD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return points in the plane of their two largest variances, [K, 2]; the sign of each axis is fixed."""
    centred_KD = points_KD.astype(np.float64) - points_KD.mean(axis=0)
    _, _, axes = np.linalg.svd(centred_KD, full_matrices=False)
    plane = np.zeros((2, points_KD.shape[1]))
    plane[: len(axes[:2])] = axes[:2]
    plane *= np.where(plane[[0, 1], np.abs(plane).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    return np.asarray(centred_KD @ plane.T)
