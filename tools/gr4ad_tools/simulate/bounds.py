"""What a policy's revenue is held against: the best there is, and what takes no model.

- oracle: live ads by true eCPM. Examination falls with the slot for all ads alike, so this order earns the most that
  one list can.
- random: live ads by lot.
- popularity × bid: live ads by clicks in the log times what a click pays at base rates, the same for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.market import Market

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CHUNK = 64  # users whose scores over all live ads are held at once
FOILS = ("oracle", "popularity_bid", "random")


@dataclass(frozen=True)
class Revenue:
    """Expected revenue of a policy per request.

    Attributes:
        mean_micros: Mean over the requests.
        standard_error: Of the mean, over requests.
        oracle_share: Mean as a share of the oracle's on the same requests.
        requests: Requests.
    """

    mean_micros: float
    standard_error: float
    oracle_share: float
    requests: int


def expected_revenue(market: Market, users: IntArray, ads: IntArray, time: float) -> FloatArray:
    """Return what lists earn in expectation, in micros per request.

    Args:
        market: The judge.
        users: Users, [R].
        ads: Ads in the order shown, [R, L]; −1 is an empty slot.
        time: Unix time.
    """
    ecpm = market.true_ecpm(users, ads, time, np.arange(ads.shape[1]))
    return np.asarray(ecpm.sum(axis=1) / 1000.0)


def foil_lists(
    name: str, market: Market, users: IntArray, time: float, length: int, rng: np.random.Generator
) -> IntArray:
    """Return the lists of one of FOILS, [R, length]; −1 where fewer ads are live.

    Raises:
        ValueError: There is no such foil.
    """
    live = np.flatnonzero(market.live(time))
    if name == "oracle":
        lists = [
            _top(market.true_ecpm(part, np.broadcast_to(live, (len(part), len(live))), time), live, length)
            for part in (users[start : start + CHUNK] for start in range(0, len(users), CHUNK))
        ]
        return np.concatenate(lists)
    if name == "random":
        return _top(rng.random((len(users), len(live))), live, length)
    if name == "popularity_bid":
        worth = market.log.clicks_N[live] * market.value_per_click(time)[live]
        return np.repeat(_top(worth[None, :], live, length), len(users), axis=0)
    raise ValueError(f"foil is {name!r}: use one of {', '.join(FOILS)}")


def judge(
    market: Market, lists: dict[str, IntArray], users: IntArray, time: float, rng: np.random.Generator
) -> dict[str, Revenue]:
    """Return the expected revenue of policies' lists beside that of the foils, on the same requests.

    Args:
        market: The judge.
        lists: Ads by policy, [R, L] each.
        users: User of each request, [R].
        time: Unix time.
        rng: Source of the random foil.
    """
    length = max((ads.shape[1] for ads in lists.values()), default=market.config.list_length)
    everything = {name: foil_lists(name, market, users, time, length, rng) for name in FOILS} | lists
    earned = {name: expected_revenue(market, users, ads, time) for name, ads in everything.items()}
    best = float(earned["oracle"].mean())
    return {
        name: Revenue(
            float(micros.mean()),
            float(micros.std(ddof=1) / np.sqrt(len(micros))) if len(micros) > 1 else float("nan"),
            float(micros.mean()) / best,
            len(micros),
        )
        for name, micros in earned.items()
    }


def _top(scores: FloatArray, ads: IntArray, length: int) -> IntArray:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :length]
    lists = np.full((len(scores), length), -1, dtype=np.int64)
    lists[:, : order.shape[1]] = ads[order]
    return lists
