"""Pacing by logged spend: the rule against its loop form, and the loop against services."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import grpc
import pytest
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_tools import tracker
from gr4ad_tools.pacing import SLACK, Pacing, run_pacing

from tests.plain_channel import plain_channel

CAMPAIGN_OF = {f"ad-{n}": n // 3 for n in range(12)}
BUDGETS = {0: 100.0, 1: 50.0, 2: 10.0, 3: 1e9}


@pytest.mark.parametrize("seed", range(10))
def test_the_rule_equals_its_loop_form(seed: int) -> None:
    dice = random.Random(seed)
    pacing, active = Pacing(CAMPAIGN_OF, BUDGETS), dict.fromkeys(CAMPAIGN_OF, True)
    for day in range(3):
        booked: list[tuple[str, int]] = []
        pacing.changes(day, 0.0) if day else None
        active = dict.fromkeys(CAMPAIGN_OF, True) if day else active
        for step in range(8):
            for _ in range(3):
                event = (f"ad-{dice.randrange(14)}", dice.randrange(12))
                booked.append(event)
                pacing.spend(*event)
            if day == 0 and step == 0:
                booked.clear()  # the first look begins the day
            share = step / 8
            active |= pacing.changes(day, share)
            for ad_id, campaign in CAMPAIGN_OF.items():
                spent = sum(micros for other, micros in booked if CAMPAIGN_OF.get(other) == campaign)
                assert active[ad_id] == (spent < BUDGETS[campaign] * min(1.0, share + SLACK)), (day, step, ad_id)


def test_held_ads_are_released_once() -> None:
    pacing = Pacing(CAMPAIGN_OF, BUDGETS)
    pacing.changes(0, 0.0)
    pacing.spend("ad-0", 100)
    assert pacing.changes(0, 0.5) == {"ad-0": False, "ad-1": False, "ad-2": False}
    assert pacing.changes(0, 0.6) == {}
    assert pacing.release() == {"ad-0": True, "ad-1": True, "ad-2": True}
    assert pacing.release() == {}


class Services(reward_pb2_grpc.RewardServiceServicer, sid_pb2_grpc.SidServiceServicer):
    """A log of lists, each with its spend, and a catalogue that notes changes; both are away at first."""

    def __init__(self, spends: list[tuple[str, int]]) -> None:
        self.spends = spends
        self.states: list[tuple[str, int]] = []
        self.cursors: list[int] = []
        self.away = 2

    async def ReadRewardedLists(
        self, request: reward_pb2.ReadRewardedListsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[reward_pb2.ReadRewardedListsResponse]:
        assert request.min_age.ToTimedelta().total_seconds() == 0.5
        self.cursors.append(request.cursor)
        if self.away:
            self.away -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        for number, (ad_id, micros) in enumerate(self.spends[request.cursor :], start=request.cursor + 1):
            rewarded = reward_pb2.RewardedList(
                outcomes=[reward_pb2.Outcome(ad_id=ad_id, impression_count=1, revenue_micros=micros)]
            )
            yield reward_pb2.ReadRewardedListsResponse(rewarded_lists=[rewarded], cursor=number)

    async def UpdateAd(
        self, request: sid_pb2.UpdateAdRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.UpdateAdResponse:
        if self.away:
            self.away -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.states.append((request.ad_id, request.state))
        return sid_pb2.UpdateAdResponse()


@contextlib.asynccontextmanager
async def serving(services: Services) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    reward_pb2_grpc.add_RewardServiceServicer_to_server(services, server)
    sid_pb2_grpc.add_SidServiceServicer_to_server(services, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with plain_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def test_what_is_out_of_budget_is_paused_and_goes_on_at_the_end() -> None:
    assert grpc.StatusCode.UNAVAILABLE in tracker.AWAY
    services, until = Services([("ad-3", 20), ("ad-4", 40), ("ad-9", 5), ("unknown", 99)]), asyncio.Event()
    paused, active = sid_pb2.AD_STATE_PAUSED, sid_pb2.AD_STATE_ACTIVE
    async with serving(services) as channel:
        loop = asyncio.create_task(
            run_pacing(
                Pacing(CAMPAIGN_OF, BUDGETS),
                channel,
                channel,
                clock=lambda: (3, 0.5),
                cursor=0,
                every_s=0.02,
                outcome_wait_s=0.5,
                until=until,
            )
        )
        async with asyncio.timeout(20):
            while len(services.states) < 3 or max(services.cursors) < 4:
                await asyncio.sleep(0.01)
        assert services.states == [("ad-3", paused), ("ad-4", paused), ("ad-5", paused)]
        services.away = 1
        until.set()
        counts = await loop
    assert services.states[3:] == [("ad-3", active), ("ad-4", active), ("ad-5", active)]
    assert (counts.paused, counts.resumed) == (3, 3)
