"""The yardstick of revenue: a fixed set of simulated requests that every policy answers, priced by the market's truth.

What a list earns is its true expected value, without the noise of clicks. The best list there is, lists by lot and a
popularity × bid policy stand beside it (`simulate.bounds`).

Shapes: R requests, L ads shown per request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import numpy as np
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import Interactions
from numpy.typing import NDArray

from gr4ad_tools.bootstrap import UserSums, bootstrap_ratio
from gr4ad_tools.evaluation import ScoredLists, score
from gr4ad_tools.figures import Figure
from gr4ad_tools.leave_one_out import user_context
from gr4ad_tools.simulate import Market
from gr4ad_tools.simulate.bounds import expected_revenue, judge

REQUESTS = 1000
MICROS = 1e6
PER_MILLE = 1000.0

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class FixedRequests:
    """Requests at the moment when the market's log ends: users as they come on the next day, with all of their past.

    Attributes:
        users_R: Users, as the market numbers them.
        contexts: What is known of each.
        time: Unix time of all.
    """

    users_R: IntArray
    contexts: list[type_pb2.UserContext]
    time: float

    @classmethod
    def draw(cls, market: Market, interactions: Interactions, seed: int, count: int = REQUESTS) -> FixedRequests:
        """Draw requests; the same market, seed and count give the same ones.

        Args:
            market: Where users come from.
            interactions: Its log.
            seed: Of the draw.
            count: Requests R.
        """
        arrivals = market.arrivals(market.config.days, np.random.default_rng([seed, count]))
        users_R = np.random.default_rng([count, seed]).permutation(arrivals.users_R)[:count]
        logged = {user_id: number for number, user_id in enumerate(interactions.user_ids)}
        contexts = [logged_context(interactions, logged, market.user_ids[user], market.end) for user in users_R]
        return cls(users_R, contexts, market.end)

    def only(self, rows_R: NDArray[np.bool_]) -> FixedRequests:
        """Return some of the requests."""
        contexts = [context for context, chosen in zip(self.contexts, rows_R, strict=True) if chosen]
        return FixedRequests(self.users_R[rows_R], contexts, self.time)


async def ask_all(channel: grpc.aio.Channel, market: Market, fixed: FixedRequests, run_id: str) -> ScoredLists:
    """Ask a generator for a page of ads for each request; what fails is counted.

    Args:
        channel: Channel to the generator.
        market: Says how long a page is.
        fixed: The requests.
        run_id: Prefix of the request ids; unique per run.
    """
    length = market.config.list_length
    return await score(channel, fixed.contexts, market.item_ids, run_id=run_id, candidate_count=length)


def shown_lists(market: Market, answers: ScoredLists) -> IntArray:
    """Return the ads shown for each request, [R, L]; −1, which earns nothing, where a list is shorter or failed.

    Args:
        market: Numbers the ads; one that it does not know earns nothing either.
        answers: A policy's.
    """
    lists_RL = np.full((len(answers.ads), market.config.list_length), -1, dtype=np.int64)
    for row, ads in zip(lists_RL, answers.ads, strict=True):
        row[: len(ads)] = [market.ad_index.get(ad.ad_id, -1) for ad in ads]
    return lists_RL


def revenue_figures(market: Market, fixed: FixedRequests, lists: dict[str, IntArray], seed: int) -> dict[str, Figure]:
    """Return each policy's expected revenue per mille, beside the foils', and its share of the oracle's.

    Args:
        market: The judge.
        fixed: The requests.
        lists: Ads shown by policy, [R, L] each.
        seed: Of the lists by lot.
    """
    judged = judge(market, lists, fixed.users_R, fixed.time, np.random.default_rng(seed))
    length, requests = market.config.list_length, len(fixed.users_R)
    unit = "currency units per 1,000 impressions"
    figures = {
        f"{name}_rpm": Figure(PER_MILLE * revenue.mean_micros / MICROS / length, unit, requests)
        for name, revenue in judged.items()
    }
    shares = {f"{name}_oracle_share": Figure(judged[name].oracle_share, "share", requests) for name in lists}
    return figures | shares


def lift_figures(
    market: Market, fixed: FixedRequests, arm_RL: IntArray, baseline_RL: IntArray, seed: int, name: str
) -> dict[str, Figure]:
    """Return how much more one policy's lists earn than another's on the same requests, in %, with its 95 % interval.

    Args:
        market: The judge.
        fixed: The requests; the interval comes of drawing their users anew.
        arm_RL: Ads shown by the policy, [R, L].
        baseline_RL: Ads shown by the one it is compared with, [R, L].
        seed: Of the bootstrap.
        name: Prefix of the figures.
    """
    arm, baseline = (
        UserSums.of(
            fixed.users_R, expected_revenue(market, fixed.users_R, lists_RL, fixed.time), np.ones(len(lists_RL))
        )
        for lists_RL in (arm_RL, baseline_RL)
    )
    lift = bootstrap_ratio(arm, baseline, paired=True, seed=seed)
    ends = {"lift_pct": lift.value, "lift_ci_low": lift.low, "lift_ci_high": lift.high}
    return {f"{name}_{end}": Figure(100.0 * value, "%", len(fixed.users_R)) for end, value in ends.items()}


def logged_context(
    interactions: Interactions, logged: Mapping[str, int], user_id: str, request_time: float
) -> type_pb2.UserContext:
    """Return a user's context after the whole log.

    Args:
        interactions: The log.
        logged: Number of each user that it knows, by id.
        user_id: The user; one it does not know starts cold.
        request_time: Unix time of the request.
    """
    if user_id not in logged:
        context = type_pb2.UserContext(user_id=user_id, cold_start=True)
        context.request_time.FromSeconds(int(request_time))
        return context
    start, end = interactions.offsets[logged[user_id] :][:2]
    return user_context(interactions, logged[user_id], int(start), int(end), request_time)
