"""The bootstrap clustered by user as it reads: draw users one by one, and collect all that is theirs each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Row = tuple[float, float]


def draw_users(users: Sequence[object], resamples: int, seed: list[int]) -> Iterator[list[object]]:
    """Yield the users of each resample."""
    random = np.random.default_rng(seed)
    known = sorted(set(users))
    for _ in range(resamples):
        yield [known[random.integers(len(known))] for _ in known]


def rows_of(drawn: Sequence[object], users: Sequence[object], rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the drawn users, a user's rows once for each time it was drawn."""
    return [row for user in drawn for owner, row in zip(users, rows, strict=True) if owner == user]


def ratio(rows: Sequence[Row]) -> float:
    """Return Σ numerators / Σ denominators; NaN or infinite where there is no denominator."""
    over, under = sum(row[0] for row in rows), sum(row[1] for row in rows)
    if under:
        return over / under
    return math.inf if over else math.nan


def lift(rows: Sequence[Row], baseline: Sequence[Row]) -> float:
    """Return the relative lift of a ratio over a baseline's."""
    over, under = ratio(rows), ratio(baseline)
    if math.isnan(over) or math.isnan(under) or (over == 0 == under) or (math.isinf(over) and math.isinf(under)):
        return math.nan
    if math.isinf(under):
        return -1.0
    return over / under - 1.0 if under else math.inf


def quantile(rows: Sequence[Row], q: float) -> float:
    """Return the nearest numerator at or above a quantile."""
    values = sorted(row[0] for row in rows)
    return values[math.ceil(q * (len(values) - 1))]


def ends(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the values between which that share of the defined ones lies, each the nearest one outwards."""
    rising = sorted(value for value in values if not math.isnan(value))
    if not rising:
        return math.nan, math.nan
    outside = (1.0 - confidence) / 2.0 * (len(rising) - 1)
    return rising[math.floor(outside)], rising[math.ceil(len(rising) - 1 - outside)]


def interval(
    users: Sequence[object],
    rows: Sequence[Row],
    statistic: Callable[[Sequence[Row]], float],
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """Return the interval of a statistic of one arm."""
    values = [statistic(rows_of(drawn, users, rows)) for drawn in draw_users(users, resamples, [seed, 0])]
    return ends(values, confidence)


def lift_interval(
    users: Sequence[object],
    rows: Sequence[Row],
    baseline_users: Sequence[object],
    baseline_rows: Sequence[Row],
    paired: bool,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """Return the interval of the lift; paired arms see the same draws."""
    drawn = draw_users(users, resamples, [seed, 0])
    baseline_drawn = draw_users(baseline_users, resamples, [seed, 0 if paired else 1])
    values = [
        lift(rows_of(one, users, rows), rows_of(other, baseline_users, baseline_rows))
        for one, other in zip(drawn, baseline_drawn, strict=True)
    ]
    return ends(values, confidence)
