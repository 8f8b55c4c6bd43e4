"""When users come: sessions of requests through the day, and bursts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.scenarios import DAY_S, MarketConfig
from gr4ad_tools.simulate.users import HOUR_SPREAD, Users

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

START = 1_736_121_600.0  # Monday, 6 January 2025, midnight UTC
BURST_MARGIN_S = 1_800.0  # the usual rate of a burst is that from so long before it to so long after
REQUEST_GAP_S = 45.0  # mean time between two requests of a session


@dataclass(frozen=True)
class Arrivals:
    """Requests in order of time.

    Attributes:
        users_R: User of each request.
        times_R: Unix time of each request.
    """

    users_R: IntArray
    times_R: FloatArray

    def __len__(self) -> int:
        return len(self.users_R)


def day_of(times: FloatArray | float) -> IntArray:
    """Return the market's day at unix times; days before the start are negative."""
    return np.floor((np.asarray(times) - START) / DAY_S).astype(np.int64)


def hour_of(times: FloatArray | float) -> FloatArray:
    """Return the hour of day at unix times, 0 to 24."""
    return np.asarray(np.mod(np.asarray(times) - START, DAY_S) / 3600.0)


def day_arrivals(config: MarketConfig, users: Users, day: int, rng: np.random.Generator) -> Arrivals:
    """Draw the requests of one day.

    A user has Poisson(activity) sessions, each at the favourite hour plus normal noise, of a geometric number of
    requests. In a burst the rate of the hour around it is multiplied: requests of users drawn by activity are added.
    """
    sessions_U = rng.poisson(users.activity_U)
    session_users = np.repeat(np.arange(len(users)), sessions_U)
    starts = np.mod(users.hour_U[session_users] + rng.normal(0.0, HOUR_SPREAD, len(session_users)), 24.0) * 3600.0
    lengths = rng.geometric(1.0 / config.session_length, len(session_users))
    users_R = np.repeat(session_users, lengths)
    gaps = rng.exponential(REQUEST_GAP_S, len(users_R))
    # Time since the session's first request: a running sum of gaps, less its value where the session began.
    first = np.cumsum(lengths) - lengths
    elapsed = np.cumsum(gaps)
    elapsed -= np.repeat(elapsed[first], lengths)
    times_R = np.minimum(np.repeat(starts, lengths) + elapsed, DAY_S - 1.0)
    for _ in range(rng.poisson(config.bursts_per_day)):
        burst_users, burst_times = _burst(config, users, times_R, rng)
        users_R, times_R = np.concatenate([users_R, burst_users]), np.concatenate([times_R, burst_times])
    order = np.argsort(times_R, kind="stable")
    return Arrivals(users_R[order], START + day * DAY_S + times_R[order])


def _burst(
    config: MarketConfig, users: Users, times_R: FloatArray, rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    length = config.burst_minutes * 60.0
    start = rng.uniform(0.0, DAY_S - length)
    around = (times_R >= start - BURST_MARGIN_S) & (times_R < start + length + BURST_MARGIN_S)
    usual = around.sum() * length / (length + 2 * BURST_MARGIN_S)
    count = rng.poisson((config.burst_factor - 1.0) * usual)
    chosen = rng.choice(len(users), size=count, p=users.activity_U / users.activity_U.sum())
    return chosen, start + rng.random(count) * length
