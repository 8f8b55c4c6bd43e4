"""Bootstrap intervals clustered by user: users are drawn with replacement, each with all that is theirs.

A user's requests are alike, so to draw single requests would count the same evidence several times. A resample is kept
as how often each user was drawn (multinomial counts), and its sums are the product of the counts with sums per user.

Shapes: N observations, U users, B resamples of a chunk, K sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
CHUNK_CELLS: Final = 2**22
"""Cells of the largest array that is held at a time."""

Array = NDArray[Any]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and the interval that its resamples span; NaN where nothing defines it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class UserSums:
    """A ratio's numerators and denominators, summed by user.

    Attributes:
        users_U: The users, sorted.
        numerators_U: Sum of each user's numerators.
        denominators_U: Sum of each user's denominators.
    """

    users_U: Array
    numerators_U: FloatArray
    denominators_U: FloatArray

    @classmethod
    def of(cls, users_N: Array, numerators_N: Array, denominators_N: Array) -> UserSums:
        """Sum observations by user.

        Args:
            users_N: Whose each is, as text or number.
            numerators_N: Such as revenue.
            denominators_N: Such as impressions.
        """
        users_U, user_N = np.unique(users_N, return_inverse=True)
        sums = (np.bincount(user_N, weights=values_N) for values_N in (numerators_N, denominators_N))
        return cls(users_U, *(sums_U.astype(np.float64) for sums_U in sums))


def bootstrap_ratio(
    arm: UserSums,
    baseline: UserSums | None = None,
    *,
    paired: bool = False,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the ratio Σ numerators / Σ denominators with its percentile interval, or its lift over a baseline's.

    A resample in which the result is 0 / 0 is left out; any other division by zero is infinite.

    Args:
        arm: The ratio's parts by user.
        baseline: With it, the result is the relative lift, arm / baseline − 1.
        paired: Whether both arms answered the same users, who are then drawn once for both.
        seed: Of the draws.
        resamples: How many.
        confidence: Share of the resamples in the interval.

    Raises:
        ValueError: Paired arms have different users.
    """
    arm_KU = np.stack([arm.numerators_U, arm.denominators_U])
    if baseline is None:
        sums_KB = _resampled_sums(arm_KU, resamples, [seed, 0])
        return _interval(_lift(arm_KU.sum(axis=1)), _lift(sums_KB), confidence)
    baseline_KU = np.stack([baseline.numerators_U, baseline.denominators_U])
    if paired:
        if not np.array_equal(arm.users_U, baseline.users_U):
            raise ValueError(
                "paired: the arms have different users: give each user's sums in both, or compare unpaired"
            )
        sums_KB = _resampled_sums(np.concatenate([arm_KU, baseline_KU]), resamples, [seed, 0])
    else:
        sums_KB = np.concatenate(
            [_resampled_sums(arm_KU, resamples, [seed, 0]), _resampled_sums(baseline_KU, resamples, [seed, 1])]
        )
    return _interval(_lift(np.concatenate([arm_KU.sum(axis=1), baseline_KU.sum(axis=1)])), _lift(sums_KB), confidence)


def bootstrap_quantiles(
    users_N: Array,
    values_N: Array,
    quantiles: Sequence[float],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """Return quantiles of the observations, each the nearest observation at or above, with its percentile interval.

    Args:
        users_N: Whose each observation is.
        values_N: The observations.
        quantiles: Which, 0 to 1.
        seed: Of the draws.
        resamples: How many.
        confidence: Share of the resamples in the interval.
    """
    if not len(values_N):
        return [Interval(math.nan, math.nan, math.nan) for _ in quantiles]
    order_N = np.argsort(values_N, kind="stable")
    rising_N = np.asarray(values_N, dtype=np.float64)[order_N]
    users_U, user_N = np.unique(users_N, return_inverse=True)
    user_N = user_N[order_N]
    found: list[list[FloatArray]] = [[] for _ in quantiles]
    for counts_BU in _counts(len(users_U), resamples, [seed, 0], cells=len(rising_N)):
        upto_BN = counts_BU[:, user_N].cumsum(axis=1)
        for q, values in zip(quantiles, found, strict=True):
            place_B1 = np.ceil(q * (upto_BN[:, -1:] - 1))
            values.append(rising_N[(upto_BN <= place_B1).sum(axis=1)])
    return [
        _interval(float(np.quantile(rising_N, q, method="higher")), np.concatenate(values), confidence)
        for q, values in zip(quantiles, found, strict=True)
    ]


def _resampled_sums(columns_KU: FloatArray, resamples: int, seed: list[int]) -> FloatArray:
    columns_UK = np.ascontiguousarray(columns_KU.T)
    chunks = [counts_BU @ columns_UK for counts_BU in _counts(len(columns_UK), resamples, seed)]
    return np.concatenate(chunks).T


def _counts(users: int, resamples: int, seed: list[int], cells: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield how often each user was drawn in each resample, [B, U] by chunk; the draws do not depend on the chunks."""
    random = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // max(users, cells, 1))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn_BU = random.integers(max(users, 1), size=(size, users)) + users * np.arange(size)[:, None]
        yield np.bincount(drawn_BU.ravel(), minlength=size * users).reshape(size, users)


def _lift(sums: FloatArray) -> Any:
    """Return the ratio of sums [2, …], or the relative lift of sums [4, …]: numerator and denominator of each arm."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sums[0] / sums[1]
        return ratio if len(sums) == 2 else ratio / (sums[2] / sums[3]) - 1.0


def _interval(value: float, resampled: FloatArray, confidence: float) -> Interval:
    rising = np.sort(resampled[~np.isnan(resampled)])
    if not len(rising):
        return Interval(float(value), math.nan, math.nan)
    # The nearest resample outwards: an infinite one has no neighbour to interpolate with.
    outside = (1.0 - confidence) / 2.0 * (len(rising) - 1)
    low, high = rising[math.floor(outside)], rising[math.ceil(len(rising) - 1 - outside)]
    return Interval(float(value), float(low), float(high))
