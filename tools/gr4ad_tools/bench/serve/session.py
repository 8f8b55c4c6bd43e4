"""The course of the benchmark: capacity, loads, what they cost in quality, and a long load."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from gr4ad_tools import figures
from gr4ad_tools.bench.beam_simulation import poisson_arrivals
from gr4ad_tools.bench.serve.accounting import Load, failed, growth_pct, over_fixed, refusal_ms, relative_value
from gr4ad_tools.bench.serve.churn import Churn
from gr4ad_tools.bench.serve.client import ANSWERED, Outcome, Target, closed_loop, open_loop
from gr4ad_tools.bench.serve.stage import FIXED_WIDTHS, GENERATOR, Stage
from gr4ad_tools.bench.serve.swaps import PolicySwaps, swaps_seen
from gr4ad_tools.demo.state import RunState
from gr4ad_tools.figures import Figure

ADAPTIVE: Final = GENERATOR
FIXED: Final = f"{GENERATOR}_fixed"
GENERATORS: Final = {ADAPTIVE: {}, FIXED: FIXED_WIDTHS}
USERS: Final = (2, 4, 6, 9, 12, 18)
"""How many ask at a time, in turn, to find the capacity."""
WARM_UP_USERS: Final = 4
PATIENT_S: Final = 5.0
"""Budget of those who ask at full width: no question of time."""
SOAK_PCT: Final = 80
USERS_A_RUN: Final = 100_000_000
"""Numbers that each run's users are among, so that no user comes twice."""


class NoCapacityError(Exception):
    """The generator answers nobody in time, so that no load can be said relative to what it can do."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        loads: In percent of the nominal load.
        fixed_loads: At which of them fixed widths are measured, too.
        seconds: Of each load.
        capacity_seconds: Of each number of users, in the search of the capacity.
        soak_minutes: Of the long load; 0 for none.
        swaps_per_minute: Policies made current a minute, under the long load; 0 for none.
        budget_s: Latency budget of each request.
        candidates: Ads wanted per request.
        churn_per_s: Pauses a second, and as many creations; 0 for none.
        compared: Requests of each load whose lists are compared with those at full width.
        seed: Of arrivals and users.
    """

    loads: tuple[int, ...]
    fixed_loads: tuple[int, ...]
    seconds: float
    capacity_seconds: float
    soak_minutes: float
    swaps_per_minute: float
    budget_s: float
    candidates: int
    churn_per_s: float
    compared: int
    seed: int


@dataclass
class Session:
    """One benchmark of a running stage.

    Attributes:
        stage: What is running.
        plan: What to measure.
        client: A process of the client's own.
        churn: Changes of the catalogue while loads run.
        tell: Called with what is under way.
        state: The parts of the plan that have been measured, by this run or by one that was interrupted.
    """

    stage: Stage
    plan: Plan
    client: ProcessPoolExecutor
    churn: Churn
    tell: Callable[[str], None]
    state: RunState
    _asked: Counter[str] = field(default_factory=Counter)
    """Sums over all that was asked since the last part ended."""
    _before: Counter[str] = field(default_factory=Counter)
    """Sums over all that the stage had done by then."""
    _runs: int = 0

    async def measure(self) -> dict[str, Figure]:
        """Measure what is missing of the plan, and return the figures of all of it."""
        for name in (FIXED, ADAPTIVE):
            await self._closed(name, self._next_users(), WARM_UP_USERS, self.plan.capacity_seconds)
        await self._part("capacity", self._nominal)
        nominal = self._found()["nominal_rps"].value
        for load in self.plan.loads:
            await self._part(f"load {load}", partial(self._at_load, load, nominal))
        if self.plan.soak_minutes:
            await self._part("soak", partial(self._soak, nominal))
        found, parts = self._found(), self.state.results.values()
        counts = sum((Counter[str](part["counts"]) for part in parts), Counter[str]())
        refused_ms = [each for part in parts for each in part["refused_ms"]]
        return {
            **found,
            **over_fixed(found, self.plan.fixed_loads),
            "refused_ms_p99": figures.percentile(refused_ms, 99, "ms"),
            "invalid_ads": Figure(counts["invalid"], "ads", counts["returned"]),
            "ads_paused": Figure(counts["paused"], "ads"),
            "failed": Figure(counts["failed"], "requests"),
            "restarts": Figure(counts["restarts"], "processes"),
        }

    def _found(self) -> dict[str, Figure]:
        return {
            name: Figure(**figure) for part in self.state.results.values() for name, figure in part["figures"].items()
        }

    async def _part(self, name: str, measure: Callable[[], Awaitable[dict[str, Figure]]]) -> None:
        """Measure a part of the plan, unless that has been done, and keep it."""
        if name in self.state.results:
            return
        log_start = self.stage.log(ADAPTIVE).stat().st_size
        found = await measure()
        totals = Counter(paused=len(self.churn.paused_at), restarts=sum(self.stage.suite.restarts.values()))
        counts = self._asked + totals - self._before
        self._asked, self._before = Counter(), totals
        with self.stage.log(ADAPTIVE).open(encoding="utf-8") as log:
            log.seek(log_start)
            refused_ms = refusal_ms(log)
        of_part = {key: asdict(figure) for key, figure in found.items()}
        self.state.done(name, {"figures": of_part, "counts": counts, "refused_ms": refused_ms})

    async def _nominal(self) -> dict[str, Figure]:
        """Measure what users who wait for answers get at most from fixed widths, in answers in budget a second."""

        async def ask(users: int) -> list[Outcome]:
            self.tell(f"capacity, {users} users")
            return await self._closed(FIXED, self._next_users(), users, self.plan.capacity_seconds)

        return {"nominal_rps": await capacity(ask, self.plan.budget_s)}

    async def _at_load(self, load_pct: int, nominal: float) -> dict[str, Figure]:
        self.tell(f"{load_pct} % of {nominal:.0f} requests a second")
        adaptive = await self._load(ADAPTIVE, load_pct, nominal)
        found = adaptive.figures(f"at_{load_pct}")
        found[f"list_value_at_{load_pct}"] = await self._compare(adaptive)
        if load_pct in self.plan.fixed_loads:
            self.tell(f"{load_pct} %, fixed widths")
            found |= (await self._load(FIXED, load_pct, nominal)).figures(f"fixed_at_{load_pct}")
        return found

    async def _load(self, name: str, load_pct: int, nominal: float) -> Load:
        """Put a constant load on a generator; the same arrivals and users meet each generator."""
        seconds, rate = self.plan.seconds, load_pct / 100.0 * nominal
        arrivals = poisson_arrivals(lambda _: rate, rate, seconds, np.random.default_rng([self.plan.seed, load_pct]))
        run = f"{name}-{load_pct}"
        async with background(self.churn.run()):
            outcomes = await self._run(open_loop, self._target(name), run, arrivals, load_pct * USERS_A_RUN)
        self._account(outcomes)
        return Load.settled(outcomes, arrivals, seconds, self.plan.budget_s)

    async def _compare(self, load: Load) -> Figure:
        """Ask some of a load's users once more at full width, and return what their lists were worth relative to it.

        Lists with an ad that has been paused since are left out: at any width they would be worth less now.
        """
        answered = [each for each in load.answered if self.churn.paused_at.keys().isdisjoint(each.ad_ids)]
        step = max(1, len(answered) // max(1, self.plan.compared))
        sample = answered[::step][: self.plan.compared]
        users = [outcome.user for outcome in sample]
        full = await self._closed(FIXED, users, WARM_UP_USERS, float("inf"), budget_s=PATIENT_S)
        return relative_value(sample, full)

    async def _soak(self, nominal: float) -> dict[str, Figure]:
        """Put a load below the capacity on the adaptive generator for long, and watch its memory."""
        seconds, rate = 60.0 * self.plan.soak_minutes, SOAK_PCT / 100.0 * nominal
        self.tell(f"{SOAK_PCT} % for {self.plan.soak_minutes:g} min")
        arrivals = poisson_arrivals(lambda _: rate, rate, seconds, np.random.default_rng([self.plan.seed, 1 << 20]))
        resident_mb: list[float] = []

        async def watch() -> None:
            while True:
                resident_mb.append(self.stage.resident_mb(ADAPTIVE))
                await asyncio.sleep(1.0)

        swaps = PolicySwaps(self.stage.training, self.plan.swaps_per_minute)
        async with background(self.churn.run()), background(watch()), background(swaps.run()):
            outcomes = await self._run(open_loop, self._target(ADAPTIVE), "soak", arrivals, 0)
        self._account(outcomes)
        load = Load.settled(outcomes, arrivals, seconds, self.plan.budget_s)
        return load.figures("soak") | {
            "soak_rss_growth_pct": growth_pct(resident_mb),
            "soak_rss_mb": Figure(resident_mb[-1], "MiB", len(resident_mb), min(resident_mb), max(resident_mb)),
            "soak_failed": Figure(failed(outcomes), "requests", len(outcomes)),
            "soak_swaps": Figure(swaps_seen(outcomes), "policy swaps", swaps.asked),
        }

    async def _closed(
        self, name: str, users: Sequence[int], at_a_time: int, seconds: float, budget_s: float | None = None
    ) -> list[Outcome]:
        target = self._target(name)
        if budget_s is not None:
            target = replace(target, budget_s=budget_s)
        self._runs += 1
        outcomes = await self._run(closed_loop, target, f"closed-{self._runs}", users, at_a_time, seconds)
        self._account(outcomes)
        return outcomes

    async def _run(self, loop_of: Callable[..., list[Outcome]], *arguments: object) -> list[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(self.client, loop_of, *arguments)

    def _account(self, outcomes: Sequence[Outcome]) -> None:
        self._asked.update(
            returned=sum(len(outcome.ad_ids) for outcome in outcomes),
            invalid=self.churn.invalid(outcomes),
            failed=failed(outcomes),
        )
        self.churn.saw(outcome for outcome in outcomes if outcome.code == ANSWERED)

    def _target(self, name: str) -> Target:
        stage, plan = self.stage, self.plan
        events = stage.config.max_history
        return Target(stage.suite.addresses[name], stage.ad_ids, events, plan.candidates, plan.budget_s, plan.seed)

    def _next_users(self) -> range:
        start = (10_000 + self._runs) * USERS_A_RUN
        return range(start, start + USERS_A_RUN)


async def capacity(ask: Callable[[int], Awaitable[list[Outcome]]], budget_s: float) -> Figure:
    """Return what users who wait for answers get at most from a generator, in answers in budget a second.

    Args:
        ask: Lets so many users ask at a time.
        budget_s: Latency budget of each request.

    Raises:
        NoCapacityError: Nobody is answered in time, however few ask.
    """
    best = Figure(0.0)
    for users in USERS:
        outcomes = await ask(users)
        span_s = max(outcome.received for outcome in outcomes) - min(outcome.sent for outcome in outcomes)
        load = Load(outcomes, span_s, budget_s)
        if load.in_budget_per_s > best.value:
            best = Figure(load.in_budget_per_s, "1/s", load.in_budget)
    if not best.n:
        raise NoCapacityError(
            f"budget_ms: {1e3 * budget_s:g}: fixed widths answer nobody in time: give more, or a smaller shape"
        )
    return best


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do something beside the block, until the block ends; what it raises comes out then."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
