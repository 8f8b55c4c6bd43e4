"""Requests as users of the simulated market send them: in sessions, with histories that only what they do changes.

**Time.** A second of the market is a second of the clock, as the minute that answers are kept for is one. What is
scaled is the number of users: the same minutes of one day after the other, from `OPENS_S` on, are laid over one another
until they hold as many requests a second as wanted. Each day is a population of its own: a user of one is nobody of
another. Lengths of sessions and gaps between requests are those of `simulate.traffic`.

**Histories.** A user comes with what the log holds of them. A click joins 4 s after its page was shown, a conversion
when it is reported; a page without either changes nothing. So two requests of a session are equal if nothing was
clicked in between. What is clicked is drawn by the market's truth on pages of its own logging policy: the weights of
the policy under test are random, hardly anybody would click what that returns, and kept answers would last too long.
The request states no time of its own, as no request of a live user does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

import numpy as np
from gr4ad.generation.v1 import generation_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import Interactions
from numpy.typing import NDArray

from gr4ad_tools.bench.ingest import first_campaign
from gr4ad_tools.bench.serve.client import ANSWERED, Outcome
from gr4ad_tools.leave_one_out import HISTORY_LIMIT
from gr4ad_tools.live_index import PAUSE_LIMIT_S
from gr4ad_tools.simulate import Market
from gr4ad_tools.simulate.event_log import CLICK_AFTER_S
from gr4ad_tools.simulate.scenarios import DAY_S
from gr4ad_tools.yardstick import logged_context

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

OPENS_S: Final = 20.5 * 3600.0
"""Second of the day that the traffic begins with: at no other time do more users come."""


@dataclass(frozen=True)
class Traffic:
    """Requests in order of time.

    Attributes:
        arrivals: Moments, ascending, in seconds from the start.
        asked: Which context each request asks with.
        contexts: The contexts, each another one, serialised.
        pages_clicked: Requests whose page was clicked.
    """

    arrivals: tuple[float, ...]
    asked: tuple[int, ...]
    contexts: tuple[bytes, ...]
    pages_clicked: int


@dataclass(frozen=True)
class Asking:
    """The questions of a traffic for one generator; a number beyond the last request begins anew.

    Attributes:
        address: host:port of the generator.
        traffic: Who asks.
        candidate_count: Ads wanted per request.
        budget_s: Latency budget of each request.
    """

    address: str
    traffic: Traffic
    candidate_count: int
    budget_s: float

    def request(self, run: str, user: int) -> generation_pb2.GenerateAdsRequest:
        """Return a request of the traffic by its number."""
        asked = self.traffic.asked
        return generation_pb2.GenerateAdsRequest(
            request_id=f"{run}-{user}",
            user_context=type_pb2.UserContext.FromString(self.traffic.contexts[asked[user % len(asked)]]),
            candidate_count=self.candidate_count,
            latency_budget_us=int(1e6 * self.budget_s),
        )


class Visitors:
    """The users of a market after its log; whoever has come in one traffic comes in no other."""

    def __init__(self, market: Market, interactions: Interactions, seed: int) -> None:
        """Continue a market.

        Args:
            market: Moves on with every page shown.
            interactions: Its log, as everybody knows it.
            seed: Of the arrivals and of what users do.
        """
        self._market = market
        self._interactions = interactions
        self._logged = {user_id: number for number, user_id in enumerate(interactions.user_ids)}
        self._arrivals, self._responses = (np.random.default_rng([seed, part]) for part in range(2))
        self._days = itertools.count(market.config.days)

    def draw(self, per_s: float, seconds: float, now: float) -> Traffic:
        """Draw a traffic.

        Args:
            per_s: Requests a second, at least.
            seconds: How long.
            now: Unix time at which it begins; events of the histories are told relative to it.
        """
        users_R, opens_R, moments_R = self._requests(per_s * seconds, seconds)
        pages_RL = self._market.logged_pages(users_R)
        visits: dict[tuple[int, float], _Visit] = {}
        contexts: list[bytes] = []
        asked, clicked_pages = [], 0
        for user, opens, moment, page in zip(users_R.tolist(), opens_R.tolist(), moments_R, pages_RL, strict=True):
            visit = visits.get((user, opens))
            if visit is None:
                visit = visits[user, opens] = _Visit(self._context(user, opens, now))
            if visit.catch_up(float(moment), now):
                contexts.append(visit.context.SerializeToString(deterministic=True))
                visit.number = len(contexts) - 1
            asked.append(visit.number)
            response = self._market.respond(user, page, opens + moment, self._responses)
            clicks = np.flatnonzero(response.clicked_RL[0])
            clicked_pages += len(clicks) > 0
            for slot in clicks:
                ad_id = first_campaign(self._market.item_ids[page[slot]])
                at = float(moment) + CLICK_AFTER_S
                visit.will(at, ad_id, type_pb2.BEHAVIOR_CLICK)
                if response.converted_RL[0, slot]:
                    visit.will(at + float(response.delay_s_RL[0, slot]), ad_id, type_pb2.BEHAVIOR_CONVERSION)
        order = np.argsort(moments_R, kind="stable")
        return Traffic(
            tuple(moments_R[order].tolist()), tuple(asked[row] for row in order), tuple(contexts), clicked_pages
        )

    def _requests(self, count: float, seconds: float) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return user, opening time and moment after it of so many requests, in the market's order of time."""
        parts: list[tuple[IntArray, FloatArray, FloatArray]] = []
        drawn = 0
        while drawn < count:
            day = next(self._days)
            opens = self._market.start + day * DAY_S + OPENS_S
            arrivals = self._market.arrivals(day, self._arrivals)
            inside_R = (arrivals.times_R >= opens) & (arrivals.times_R < opens + seconds)
            users_R, times_R = arrivals.users_R[inside_R], arrivals.times_R[inside_R]
            parts.append((users_R, np.full(len(users_R), opens), times_R - opens))
            drawn += len(users_R)
        users, opens_R, moments = zip(*parts, strict=True)
        return np.concatenate(users), np.concatenate(opens_R), np.concatenate(moments)

    def _context(self, user: int, opens: float, now: float) -> type_pb2.UserContext:
        """Return what is known of a user who comes on the first evening after the log, which is now."""
        context = logged_context(self._interactions, self._logged, self._market.user_ids[user], opens)
        context.user_id = f"{context.user_id}-{opens:.0f}"
        context.ClearField("request_time")
        later = int(now - (self._market.end + OPENS_S))
        for event in context.history:
            event.ad_id = first_campaign(event.ad_id)
            event.event_time.seconds += later
        return context


@dataclass
class _Visit:
    context: type_pb2.UserContext
    number: int = -1
    _later: list[tuple[float, str, type_pb2.Behavior.ValueType]] = field(default_factory=list)

    def will(self, moment: float, ad_id: str, behavior: type_pb2.Behavior.ValueType) -> None:
        """Note what the user does at a moment to come."""
        heappush(self._later, (moment, ad_id, behavior))

    def catch_up(self, moment: float, now: float) -> bool:
        """Take what has been done by a moment into the context; tell whether that is another one than before."""
        changed = self.number < 0
        while self._later and self._later[0][0] <= moment:
            at, ad_id, behavior = heappop(self._later)
            event = type_pb2.HistoryEvent(ad_id=ad_id, behavior=behavior)
            event.event_time.seconds = int(now + at)
            self.context.history.append(event)
            del self.context.history[:-HISTORY_LIMIT]
            self.context.cold_start = False
            changed = True
        return changed


def repeated(traffic: Traffic, ttl_s: float, begin_s: float) -> list[bool]:
    """Tell of each request from a moment on whether a cache could answer it if no ad ever changed.

    It keeps every answer, which is there at once, for `ttl_s`.
    """
    computed: dict[int, float] = {}
    found = []
    for moment, context in zip(traffic.arrivals, traffic.asked, strict=True):
        hit = moment - computed.get(context, -math.inf) < ttl_s
        if not hit:
            computed[context] = moment
        if moment >= begin_s:
            found.append(hit)
    return found


def ended_by_pause(outcomes: Sequence[Outcome], traffic: Traffic, paused_at: Mapping[str, float], ttl_s: float) -> int:
    """Count requests whose kept answer held an ad that had been paused: what a cache blind to it would have returned.

    Args:
        outcomes: What became of the traffic's requests.
        traffic: Where they are from.
        paused_at: When the pause of an ad was acknowledged, in monotonic seconds; a second later it must show.
        ttl_s: How old a kept answer may be.
    """
    kept: dict[int, Outcome] = {}
    ended = 0
    for outcome in sorted(outcomes, key=lambda outcome: outcome.sent):
        if outcome.code != ANSWERED:
            continue
        context = traffic.asked[outcome.user]
        before = kept.get(context)
        if before is not None and outcome.sent - before.sent < ttl_s:
            ended += any(paused_at.get(ad_id, math.inf) + PAUSE_LIMIT_S < outcome.sent for ad_id in before.ad_ids)
        if outcome.origin == generation_pb2.GenerateAdsResponse.ORIGIN_COMPUTED:
            kept[context] = outcome
    return ended
