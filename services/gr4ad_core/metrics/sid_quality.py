"""How well a tokeniser tells ads apart (method.md §1.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SidQuality:
    """The three figures of a tokeniser.

    Attributes:
        cpr: Compression, ads per distinct SID; 1 is best.
        col: Collision, the share of ads whose SID another ad has too; 0 is best.
        util: Utilisation, the share of all possible SIDs that is in use.
    """

    cpr: float
    col: float
    util: float


def sid_quality(sids: NDArray[np.int64], level_sizes: Sequence[int]) -> SidQuality:
    """Measure the SIDs [N, T] of N ads under a codebook of `level_sizes`.

    Raises:
        ValueError: There is no SID, or one does not fit the levels.
    """
    sids_NT = np.asarray(sids)
    if sids_NT.ndim != 2 or sids_NT.shape[1] != len(level_sizes):
        raise ValueError(f"sids: shape {sids_NT.shape}: give one row of {len(level_sizes)} codes per ad")
    if not len(sids_NT):
        raise ValueError("sids: empty: give the SID of at least one ad")
    outside = (sids_NT < 0) | (sids_NT >= np.asarray(level_sizes))
    if outside.any():
        row, level = np.argwhere(outside)[0]
        remedy = f"codes of level {level} are 0 to {level_sizes[level] - 1}"
        raise ValueError(f"sids[{row}][{level}]: {sids_NT[row, level]}: {remedy}")
    _, ads_per_sid = np.unique(sids_NT, axis=0, return_counts=True)
    return SidQuality(
        cpr=len(sids_NT) / len(ads_per_sid),
        col=float(ads_per_sid[ads_per_sid > 1].sum()) / len(sids_NT),
        util=len(ads_per_sid) / math.prod(level_sizes),
    )
