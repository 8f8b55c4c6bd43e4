"""Answers kept and shared: against an oracle that knows every moment, and one rule at a time."""

from __future__ import annotations

import asyncio
import itertools
import time
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ad_generator.ad_table import AdTable
from ad_generator.arrival import Arrival
from ad_generator.batcher import Batched
from ad_generator.engine import Generated, LoadedPolicy, Query
from ad_generator.generation import Generation
from ad_generator.list_sender import Served
from ad_generator.policy_messages import Stages
from ad_generator.result_cache import ResultCache, request_key
from gr4ad.generation.v1 import generation_pb2
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.decoding.beam_schedule import BeamPlan, Constraint
from gr4ad_runtime.errors import DeadlineExceededError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ad_generator.neighbours import ACTIVE, PAUSED
from tests.ad_generator.suite import Neighbours, Suite, request, run_ready_generator
from tests.oracles.kept_answers import History, World

TTL_S = 60.0
SIDS = tuple(itertools.product(range(3), range(4)))
ADS = [f"ad-{first}-{second}" for first, second in SIDS]
Response = generation_pb2.GenerateAdsResponse


class Market:
    """A generation over a real table and a model that is the oracle's; the clock is the test's."""

    def __init__(self, max_entries: int = 100, max_bytes: int = 1 << 20) -> None:
        self.now = 0.0
        self.calls = 0
        self.hold: asyncio.Event | None = None
        self.logged: list[Served] = []
        self.history = History()
        self.table = AdTable((3, 4))
        self.cache = ResultCache(TTL_S, max_entries, max_bytes, clock=lambda: self.now)
        self.state: Any = None
        batcher = SimpleNamespace(submit=lambda *asked: asyncio.ensure_future(self._submit(*asked)))
        engine = SimpleNamespace()
        self.generation = Generation(
            engine,
            batcher,
            SimpleNamespace(offer=self.logged.append),
            channel="stable",
            default_budget_us=1_000_000,
            cache=self.cache,
        )
        self._engine = engine
        self._swaps = itertools.count()
        self.swap()

    def swap(self) -> None:
        """Swap another policy in."""
        policy = LoadedPolicy(type_pb2.PolicyRef(policy_id=f"policy-{next(self._swaps)}"), SimpleNamespace())
        self._engine.state = SimpleNamespace(policy=policy, mirror=SimpleNamespace(table=self.table))
        self._note()

    def put(self, *ads: int, live: bool = True) -> None:
        """Make ads live, or pause them."""
        self.table.apply(
            [
                sid_pb2.CatalogEntry(
                    ad_id=ADS[ad], sid=type_pb2.SemanticId(codes=SIDS[ad]), state=ACTIVE if live else PAUSED
                )
                for ad in ads
            ]
        )
        self._note()

    def wait(self, seconds: float) -> None:
        """Let time pass; the history is told, since it knows the age of an answer by its latest moment."""
        self.now += seconds
        self._note()

    def _note(self) -> None:
        live = {self.table.ad_ids[slot] for slot in self.table.live_slots}
        policy = self._engine.state.policy.ref.policy_id
        self.history.worlds.append(World(self.now, policy, {ad_id: SIDS[ADS.index(ad_id)] for ad_id in live}))

    async def ask(self, user: str = "u", count: int = 3, budget_us: int = 0) -> Response:
        """Ask for ads."""
        asked = request(["seen"], count, latency_budget_us=budget_us)
        asked.user_context.user_id = user
        asked.user_context.features["user"] = user  # what the model of this market sees of a user
        return await self.generation.generate(asked, Arrival(time.monotonic()))

    async def _submit(self, request: Callable[[], Query], candidate_count: int, deadline: float) -> Batched[Generated]:
        self.calls += 1
        state = self._engine.state
        world = self.history.worlds[-1]
        found = world.answer(request().features["user"], candidate_count)
        if self.hold is not None:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self.hold.wait()
            except TimeoutError:
                raise DeadlineExceededError("latency_budget_us", "over", "allow more time") from None
        slots = self.table.slots(found).tolist()
        plan = BeamPlan((3, 6), Constraint.SCHEDULE)
        sids = [list(world.live[ad_id]) for ad_id in found]
        scores = [-1.0] * len(found)
        generated = Generated(
            state.policy, self.table, slots, sids, scores, [1] * len(found), plan, Stages(0, 1, (1, 1), 1), 0
        )
        return Batched(generated, 0, 0, 0, batch_size=1)


def ids(answer: Response) -> list[str]:
    return [ad.ad_id for ad in answer.candidates]


ASK = st.tuples(st.just("ask"), st.sampled_from("ab"), st.sampled_from((2, 3, 20)))
PUT = st.tuples(st.just("put"), st.integers(0, len(ADS) - 1), st.booleans())
WAIT = st.tuples(st.just("wait"), st.sampled_from((1.0, TTL_S / 2, TTL_S - 1.0, TTL_S)))
SWAP = st.tuples(st.just("swap"))
# A question comes back after a change and a while: where the change left its answer standing, only the age tells.
RETURN = st.tuples(ASK, PUT, WAIT).map(lambda steps: (*steps, steps[0]))
STEPS = st.lists(st.one_of(st.tuples(st.one_of(ASK, PUT, WAIT, SWAP)), RETURN), min_size=5, max_size=40)


@given(STEPS.map(lambda groups: list(itertools.chain.from_iterable(groups))))
@settings(max_examples=300, deadline=None)
def test_every_answer_is_one_that_the_whole_history_allows(steps: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        market = Market(max_entries=3)
        market.put(0, 1, 2, 3)  # all of one kind, so that ads of others come
        for step, *values in steps:
            match step:
                case "ask":
                    answer = await market.ask(*values)
                    assert ids(answer) in market.history.allowed(*values, TTL_S)
                    assert answer.policy == market._engine.state.policy.ref
                    assert len(market.cache) <= 3
                case "put":
                    market.put(values[0], live=values[1])
                case "wait":
                    market.wait(values[0])
                case "swap":
                    market.swap()
        assert len(market.logged) == sum(step[0] == "ask" for step in steps)
        assert market.cache.hits + market.generation.computations.own == len(market.logged)
        assert market.calls == market.generation.computations.own

    asyncio.run(run())


async def test_a_repeated_question_is_answered_again_until_it_is_too_old() -> None:
    market = Market()
    market.put(*range(len(ADS)))
    first = await market.ask()
    market.now = TTL_S - 0.01
    again = await market.ask()
    assert (first.origin, again.origin) == (Response.ORIGIN_COMPUTED, Response.ORIGIN_CACHED)
    assert list(again.candidates) == list(first.candidates)
    market.now = TTL_S
    assert (await market.ask()).origin == Response.ORIGIN_COMPUTED  # a hit does not lengthen an answer's life
    assert (market.calls, market.cache.hits, market.cache.stale) == (2, 1, 1)
    assert [served.response.origin for served in market.logged] == [1, 3, 1]
    assert len({served.request.request_id for served in market.logged}) == 3


async def test_a_new_ad_ends_the_answers_that_it_may_belong_to() -> None:
    market = Market()
    market.put(0, 1, 2, 4, 5, 6)  # three ads each of the first codes 0 and 1
    first_code = SIDS[ADS.index(ids(await market.ask(count=1))[0])][0]
    market.put(8)  # of another kind than the list
    assert (await market.ask(count=1)).origin == Response.ORIGIN_CACHED
    market.put(4 * first_code + 3)
    assert (await market.ask(count=1)).origin == Response.ORIGIN_COMPUTED


async def test_a_short_list_has_room_for_any_new_ad() -> None:
    market = Market()
    market.put(0, 1)
    assert len(ids(await market.ask(count=3))) == 2
    assert (await market.ask(count=3)).origin == Response.ORIGIN_CACHED
    market.put(11)
    assert ADS[11] in ids(await market.ask(count=3))


async def test_the_least_asked_for_answers_make_room() -> None:
    market = Market(max_entries=2)
    market.put(*range(len(ADS)))
    for user in "abac":  # b was asked for the longest ago
        await market.ask(user)
    assert (await market.ask("a")).origin == Response.ORIGIN_CACHED
    assert (await market.ask("b")).origin == Response.ORIGIN_COMPUTED
    assert len(market.cache) == 2


async def test_answers_make_room_by_size_too() -> None:
    market = Market()
    market.put(*range(len(ADS)))
    await market.ask("a", count=1)
    one = market.cache.size_bytes
    await market.ask("b", count=1)
    assert market.cache.size_bytes == 2 * one
    market = Market(max_bytes=2 * one)
    market.put(*range(len(ADS)))
    for user in "abac":  # b was asked for the longest ago
        await market.ask(user, count=1)
    assert (len(market.cache), market.cache.size_bytes) == (2, 2 * one)
    assert (await market.ask("a", count=1)).origin == Response.ORIGIN_CACHED
    await market.ask("a", count=len(ADS))  # all but one small answer would have to leave for it, and that did not do
    assert market.cache.size_bytes <= 2 * one
    market.put(0, live=False)
    market.swap()
    await market.ask("d", count=1)
    assert (len(market.cache), market.cache.size_bytes) == (1, one)  # a swap leaves nothing, in the sum neither


def test_the_estimate_is_what_memory_answers_take() -> None:
    table = AdTable((3, 4))
    cache = ResultCache(TTL_S, 10_000, 1 << 30)
    cache.find(b"", "policy", table)
    table.apply([sid_pb2.CatalogEntry(ad_id=ADS[0], sid=type_pb2.SemanticId(codes=SIDS[0]), state=ACTIVE)])
    response = Response(candidates=[type_pb2.ScoredAd(ad_id=f"{ADS[0]}-{n}", log_prob=-1.0) for n in range(20)])
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            cache.keep(number.to_bytes(32, "big"), cache.moment("policy", table), response, [0] * 20, 20)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache) == 2000
    assert 0.75 * taken < cache.size_bytes < 1.5 * taken


def test_the_key_holds_what_an_answer_depends_on() -> None:
    asked = request(["a", "b"], 5)
    same = request(["a", "b"], 5, latency_budget_us=7)
    same.user_context.features.update({"x": "1", "y": "2"})
    asked.user_context.features.update({"y": "2", "x": "1"})
    assert asked.request_id != same.request_id
    assert request_key(asked) == request_key(same)

    def changed(change: Callable[[Any], object]) -> bytes:
        other = generation_pb2.GenerateAdsRequest.FromString(asked.SerializeToString())
        change(other)
        return request_key(other)

    others = {
        changed(lambda r: setattr(r, "candidate_count", 6)),
        changed(lambda r: setattr(r.user_context, "user_id", "other")),
        changed(lambda r: r.user_context.features.update({"x": "2"})),
        changed(lambda r: r.user_context.history.reverse()),
        changed(lambda r: setattr(r.user_context.history[0], "behavior", type_pb2.BEHAVIOR_IMPRESSION)),
        changed(lambda r: r.user_context.history[0].event_time.FromSeconds(5)),
        changed(lambda r: r.user_context.request_time.FromSeconds(5)),
    }
    assert len(others | {request_key(asked)}) == 8


async def test_equal_requests_under_way_are_computed_once() -> None:
    market = Market()
    market.put(*range(len(ADS)))
    market.hold = asyncio.Event()
    asking = [asyncio.create_task(market.ask(user)) for user in "aaab"]
    await asyncio.sleep(0.01)
    asking[0].cancel()  # who started it leaves
    await asyncio.sleep(0.01)
    paused = market.history.worlds[-1].answer("a", 3)[0]
    market.put(ADS.index(paused), live=False)
    market.hold.set()
    answers = await asyncio.gather(*asking[1:])
    assert market.calls == 2
    assert [answer.origin for answer in answers] == [2, 2, 1]
    assert ids(answers[0]) == ids(answers[1]) != ids(answers[2])
    assert all(paused not in ids(answer) for answer in answers)
    assert len({served.request.request_id for served in market.logged}) == 3
    assert market.generation.computations.under_way == 0
    assert (await market.ask("a")).origin == Response.ORIGIN_COMPUTED  # an ad of the kept list has died


async def test_each_caller_keeps_its_own_deadline() -> None:
    market = Market()
    market.put(*range(len(ADS)))
    market.hold = asyncio.Event()
    short = asyncio.create_task(market.ask(budget_us=30_000))
    await asyncio.sleep(0.005)
    long, shorter = (asyncio.create_task(market.ask(budget_us=us)) for us in (5_000_000, 5_000))
    for late in (shorter, short):
        with pytest.raises(DeadlineExceededError):
            await late
    await asyncio.sleep(0.01)
    assert not long.done()
    assert market.calls == 2  # begun anew, with the time of the caller that is left
    market.hold.set()
    assert (await long).origin == Response.ORIGIN_COMPUTED


async def test_a_computation_that_nobody_waits_for_is_given_up() -> None:
    market = Market()
    market.put(*range(len(ADS)))
    market.hold = asyncio.Event()
    asking = [asyncio.create_task(market.ask()) for _ in range(3)]
    await asyncio.sleep(0.01)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert market.generation.computations.under_way == 0
    market.hold.set()
    assert (await market.ask()).origin == Response.ORIGIN_COMPUTED
    assert market.calls == 2


async def test_who_asks_after_a_swap_shares_nothing_from_before_it() -> None:
    market = Market()
    market.put(*range(len(ADS)))
    market.hold = asyncio.Event()
    before = asyncio.create_task(market.ask())
    await asyncio.sleep(0.01)
    market.swap()
    after = asyncio.create_task(market.ask())
    await asyncio.sleep(0.01)
    assert market.calls == 2
    market.hold.set()
    assert (await after).policy.policy_id == "policy-1"
    await before
    assert (await market.ask()).policy.policy_id == "policy-1"


async def test_a_running_generator_answers_again_and_tells(suite: Suite) -> None:
    first, again = await suite.ask(["ad-0-1-2"]), await suite.ask(["ad-0-1-2"])
    assert (first.origin, again.origin) == (Response.ORIGIN_COMPUTED, Response.ORIGIN_CACHED)
    assert list(again.candidates) == list(first.candidates)
    assert (await suite.ask(["ad-0-1-3"])).origin == Response.ORIGIN_COMPUTED
    kept = (await suite.status()).result_cache
    assert (kept.entries, kept.hits, kept.shared, kept.misses, kept.stale) == (2, 1, 0, 2, 0)
    best = first.candidates[0]
    cursor = suite.neighbours.catalogue.put(best.ad_id, best.sid.codes, PAUSED)
    await suite.reaches(lambda status: status.catalog_cursor >= cursor, "the pause is indexed")
    without = await suite.ask(["ad-0-1-2"])
    assert best.ad_id not in {ad.ad_id for ad in without.candidates}
    assert len(without.candidates) == len(first.candidates)
    assert (await suite.status()).result_cache.stale == 1


async def test_switched_off_every_request_is_computed(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours, result_cache_seconds=0.0) as suite:
        assert [(await suite.ask(["ad-0-1-2"])).origin for _ in range(2)] == [Response.ORIGIN_COMPUTED] * 2
        assert not (await suite.status()).HasField("result_cache")
