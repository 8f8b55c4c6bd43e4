"""The course of the benchmark: capacity without the cache, then in turns what it answers and what that gains."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from gr4ad.generation.v1 import generation_pb2

from gr4ad_tools import figures
from gr4ad_tools.bench.cache.visits import Asking, Traffic, Visitors, ended_by_pause, repeated
from gr4ad_tools.bench.serve.accounting import Load, failed
from gr4ad_tools.bench.serve.churn import Churn
from gr4ad_tools.bench.serve.client import ANSWERED, Outcome, closed_loop, open_loop
from gr4ad_tools.bench.serve.session import USERS, background, capacity
from gr4ad_tools.bench.serve.stage import FIXED_WIDTHS, GENERATOR, Stage
from gr4ad_tools.demo.state import RunState
from gr4ad_tools.figures import Figure

Response = generation_pb2.GenerateAdsResponse

CACHED: Final = GENERATOR
UNCACHED: Final = f"{GENERATOR}_uncached"
SETTLE_S: Final = 10.0
"""Before what counts, a generator without the cache meets the traffic for so long, to know its costs and its rate."""
QUESTIONS: Final = 1000
"""Requests that the capacity is found with, again and again."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        load_pct: Load at which shares and times of answers are told, in percent of the capacity without the cache.
        overload_pct: Load at which answers in budget are compared, likewise: more than can be answered.
        turns: How often.
        seconds: Of each load that count.
        capacity_seconds: Of each number of users, in the search of the capacity.
        keep_s: How long answers are kept; before what counts, the traffic flows for as long.
        budget_s: Latency budget of each request.
        candidates: Ads wanted per request.
        churn_per_s: Pauses a second, and as many creations; 0 for none.
        seed: Of the users.
    """

    load_pct: int
    overload_pct: int
    turns: int
    seconds: float
    capacity_seconds: float
    keep_s: float
    budget_s: float
    candidates: int
    churn_per_s: float
    seed: int

    @property
    def generators(self) -> dict[str, dict[str, str]]:
        """What sets the generators apart: the cache. Both keep their widths under load, so that answers are alike."""
        kept = {"GR4AD_RESULT_CACHE_SECONDS": f"{self.keep_s:g}"}
        return {CACHED: {**FIXED_WIDTHS, **kept}, UNCACHED: dict(FIXED_WIDTHS)}


@dataclass
class Seen:
    """What a part of the plan has found.

    Attributes:
        shares: Figures of a turn.
        counts: Sums over all that was asked.
        hit_ms: Latencies of kept answers at the lower load.
        computed_ms: The same of computed ones.
        behind_ms: How far the client was behind its schedule.
    """

    shares: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    hit_ms: list[float] = field(default_factory=list)
    computed_ms: list[float] = field(default_factory=list)
    behind_ms: list[float] = field(default_factory=list)


@dataclass
class Session:
    """One benchmark of a running stage.

    Attributes:
        stage: What is running.
        plan: What to measure.
        client: A process of the client's own.
        churn: Changes of the catalogue while loads run.
        visitors: Who asks.
        tell: Called with what is under way.
        state: The parts of the plan that have been measured, by this run or by one that was interrupted.
        seen: What the part under way has found.
    """

    stage: Stage
    plan: Plan
    client: ProcessPoolExecutor
    churn: Churn
    visitors: Visitors
    tell: Callable[[str], None]
    state: RunState
    seen: Seen = field(default_factory=Seen)
    _before: Counter[str] = field(default_factory=Counter)
    """Sums over all that the stage had done when the last part ended."""

    async def measure(self) -> dict[str, Figure]:
        """Measure what is missing of the plan, and return the figures of all of it.

        Raises:
            NoCapacityError: The generator without the cache answers nobody in time.
        """
        results = self.state.results
        if "capacity" not in results:
            self._done("capacity", nominal=asdict(await self._nominal()))
        nominal = Figure(**results["capacity"]["nominal"])
        for turn in range(self.plan.turns):
            if f"turn {turn}" not in results:
                await self._shares(turn, nominal.value)
                await self._gain(turn, nominal.value)
                self._done(f"turn {turn}")
        seen = [Seen(**part["seen"]) for part in results.values()]
        names = dict.fromkeys(name for each in seen for name in each.shares)
        counts = sum((Counter(each.counts) for each in seen), Counter[str]())
        units = {"in_budget_rps_cached": "1/s", "in_budget_rps_uncached": "1/s", "cache_qps_gain": "times"}
        return {
            "nominal_rps": nominal,
            **{
                name: figures.mean([each.shares[name] for each in seen if name in each.shares], units.get(name, ""))
                for name in names
            },
            **{
                f"{kind}_ms_p{q}": figures.percentile(
                    [ms for each in seen for ms in getattr(each, f"{kind}_ms")], q, "ms"
                )
                for kind in ("hit", "computed")
                for q in (50, 99)
            },
            "client_behind_ms_p99": figures.percentile([ms for each in seen for ms in each.behind_ms], 99, "ms"),
            "stale_ads": Figure(counts[f"stale {CACHED}"], "ads", counts[f"returned {CACHED}"]),
            "stale_ads_uncached": Figure(counts[f"stale {UNCACHED}"], "ads", counts[f"returned {UNCACHED}"]),
            "kept_answers_paused": Figure(counts["paused"], "requests", counts["watched"]),
            "ads_paused": Figure(counts["ads_paused"], "ads"),
            "failed": Figure(counts["failed"], "requests", counts["asked"]),
            "restarts": Figure(counts["restarts"], "processes"),
        }

    def _done(self, part: str, **more: Any) -> None:
        totals = Counter(ads_paused=len(self.churn.paused_at), restarts=sum(self.stage.suite.restarts.values()))
        self.seen.counts.update(totals - self._before)
        self._before = totals
        self.state.done(part, {"seen": vars(self.seen), **more})
        self.seen = Seen()

    async def _nominal(self) -> Figure:
        """Measure what users who wait for answers get at most without the cache; the other generator warms up, too."""
        questions = await self._draw(QUESTIONS / self.plan.keep_s, self.plan.keep_s)
        runs = 0

        async def ask(name: str, users: int) -> list[Outcome]:
            nonlocal runs
            runs += 1
            first = runs * (1 << 32)  # the ids of requests are all different
            asking = self._asking(name, questions)
            outcomes: list[Outcome] = await self._run(
                closed_loop, asking, "closed", range(first, first + (1 << 31)), users, self.plan.capacity_seconds
            )
            self._account(name, outcomes)
            return outcomes

        async def ask_without(users: int) -> list[Outcome]:
            self.tell(f"capacity without the cache, {users} users")
            return await ask(UNCACHED, users)

        for name in (CACHED, UNCACHED):
            await ask(name, USERS[0])
        return await capacity(ask_without, self.plan.budget_s)

    async def _shares(self, turn: int, nominal: float) -> None:
        """Put a load on the generator with the cache that it can answer, and see where its answers come from."""
        traffic = await self._traffic(self.plan.load_pct, nominal)
        load = await self._load(CACHED, f"shares-{turn}", traffic, 0.0)
        asked = len(load.outcomes)
        origins = Counter(outcome.origin for outcome in load.answered)
        again = repeated(traffic, self.plan.keep_s, self.plan.keep_s)
        for name, count in (
            ("cache_hit_share", origins[Response.ORIGIN_CACHED]),
            ("cache_shared_share", origins[Response.ORIGIN_SHARED]),
            ("repeated_share", sum(again)),
            ("answered_share", load.in_budget),
        ):
            self.seen.shares[name] = count / asked
        self.seen.shares["clicked_page_share"] = traffic.pages_clicked / len(traffic.asked)
        times_ms: dict[int, list[float]] = {
            Response.ORIGIN_CACHED: self.seen.hit_ms,
            Response.ORIGIN_COMPUTED: self.seen.computed_ms,
        }
        for outcome in load.answered:
            if outcome.origin in times_ms:
                times_ms[outcome.origin].append(1e3 * outcome.latency_s)

    async def _gain(self, turn: int, nominal: float) -> None:
        """Put more than can be answered on both generators, the same traffic one after the other, in turns first."""
        traffic = await self._traffic(self.plan.overload_pct, nominal)
        begins = {CACHED: 0.0, UNCACHED: max(0.0, self.plan.keep_s - SETTLE_S)}
        loads = {}
        for name in (CACHED, UNCACHED) if turn % 2 == 0 else (UNCACHED, CACHED):
            loads[name] = await self._load(name, f"gain-{turn}-{name}", traffic, begins[name])
        cached, uncached = loads[CACHED], loads[UNCACHED]
        hits = sum(outcome.origin == Response.ORIGIN_CACHED for outcome in cached.answered)
        gain = cached.in_budget_per_s / uncached.in_budget_per_s if uncached.in_budget else float("nan")
        self.seen.shares |= {
            "cache_qps_gain": gain,
            "in_budget_rps_cached": cached.in_budget_per_s,
            "in_budget_rps_uncached": uncached.in_budget_per_s,
            "cache_hit_share_overload": hits / len(cached.outcomes),
        }

    async def _traffic(self, load_pct: int, nominal: float) -> Traffic:
        rate = load_pct / 100.0 * nominal
        self.tell(f"users for {rate:.0f} requests a second")
        traffic = await self._draw(rate, self.plan.keep_s + self.plan.seconds)
        self.tell(f"{load_pct} % of {nominal:.0f} requests a second")
        return traffic

    async def _draw(self, per_s: float, seconds: float) -> Traffic:
        return await asyncio.to_thread(self.visitors.draw, per_s, seconds, time.time())

    async def _load(self, name: str, run: str, traffic: Traffic, begin_s: float) -> Load:
        """Put a traffic on a generator from a moment of it on, and return what counts of it."""
        first, counted = (bisect_left(traffic.arrivals, moment) for moment in (begin_s, self.plan.keep_s))
        moments = [moment - begin_s for moment in traffic.arrivals[first:]]
        async with background(self.churn.run()):
            outcomes = await self._run(open_loop, self._asking(name, traffic), run, moments, first)
        self._account(name, outcomes)
        self.seen.behind_ms += [1e3 * outcome.behind_s for outcome in outcomes]
        if name == CACHED:
            self.seen.counts["watched"] += len(outcomes)
            self.seen.counts["paused"] += ended_by_pause(outcomes, traffic, self.churn.paused_at, self.plan.keep_s)
        return Load(outcomes[counted - first :], self.plan.seconds, self.plan.budget_s)

    async def _run(self, loop_of: Callable[..., list[Outcome]], *arguments: object) -> list[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(self.client, loop_of, *arguments)

    def _account(self, name: str, outcomes: Sequence[Outcome]) -> None:
        self.seen.counts["asked"] += len(outcomes)
        self.seen.counts["failed"] += failed(outcomes)
        self.seen.counts[f"returned {name}"] += sum(len(outcome.ad_ids) for outcome in outcomes)
        self.seen.counts[f"stale {name}"] += self.churn.invalid(outcomes)
        self.churn.saw(outcome for outcome in outcomes if outcome.code == ANSWERED)

    def _asking(self, name: str, traffic: Traffic) -> Asking:
        return Asking(self.stage.suite.addresses[name], traffic, self.plan.candidates, self.plan.budget_s)
