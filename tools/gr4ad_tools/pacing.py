"""Campaign pacing by logged spend: what is ahead of its budget is paused, and goes on when the clock has caught up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_runtime.back_off import back_off

from gr4ad_tools.tracker import AWAY

SLACK = 0.15
"""Share of the daily budget that may be spent ahead of the clock."""
CALL_TIMEOUT_S = 10.0


class Pacing:
    """The rule: a campaign is held back from `budget · min(1, share of the day passed + SLACK)` spent on."""

    def __init__(self, campaign_of: Mapping[str, int], daily_budget_micros: Mapping[int, float]) -> None:
        """Pace campaigns.

        Args:
            campaign_of: Campaign of each ad, by ad id.
            daily_budget_micros: Daily budget of each campaign.
        """
        self._campaign_of = campaign_of
        self._budget = daily_budget_micros
        self._ads: dict[int, list[str]] = defaultdict(list)
        for ad_id, campaign in campaign_of.items():
            self._ads[campaign].append(ad_id)
        self._day = -1
        self._spent: dict[int, float] = {}
        self._held: set[int] = set()

    def spend(self, ad_id: str, micros: int) -> None:
        """Book what an ad has spent on the current day; other ads than the paced ones are left out."""
        campaign = self._campaign_of.get(ad_id)
        if campaign is not None:
            self._spent[campaign] = self._spent.get(campaign, 0.0) + micros

    def changes(self, day: int, share_passed: float) -> dict[str, bool]:
        """Return the ads to change since the last call: False to pause one, True to let it go on.

        Args:
            day: A new one starts all budgets anew.
            share_passed: Share of the day that has passed.
        """
        if day != self._day:
            self._day, self._spent = day, {}
        allowed = min(1.0, share_passed + SLACK)
        held = {campaign for campaign, spent in self._spent.items() if spent >= self._budget[campaign] * allowed}
        changed = {ad_id: False for campaign in sorted(held - self._held) for ad_id in self._ads[campaign]}
        changed |= {ad_id: True for campaign in sorted(self._held - held) for ad_id in self._ads[campaign]}
        self._held = held
        return changed

    def release(self) -> dict[str, bool]:
        """Return all held ads, to go on, and hold none any more."""
        held, self._held = sorted(self._held), set()
        return {ad_id: True for campaign in held for ad_id in self._ads[campaign]}


@dataclass
class PacingCounts:
    """What a pacing loop did: ads paused and resumed."""

    paused: int = 0
    resumed: int = 0


async def run_pacing(
    pacing: Pacing,
    rewards: grpc.aio.Channel,
    sids: grpc.aio.Channel,
    *,
    clock: Callable[[], tuple[int, float]],
    cursor: int,
    every_s: float,
    outcome_wait_s: float,
    until: asyncio.Event,
) -> PacingCounts:
    """Read spend from the reward log and change ads by it, until the event is set; then let all ads go on again.

    Args:
        pacing: The rule.
        rewards: Channel to the reward log.
        sids: Channel to the SID assigner.
        clock: Tells the day and the share of it that has passed.
        cursor: Read the log after it.
        every_s: Time between two looks.
        outcome_wait_s: How long a list is left for its outcomes to come.
        until: Ends the loop.
    """
    log, catalogue = reward_pb2_grpc.RewardServiceStub(rewards), sid_pb2_grpc.SidServiceStub(sids)
    counts, pending = PacingCounts(), dict[str, bool]()
    min_age = Duration()
    min_age.FromNanoseconds(round(1e9 * outcome_wait_s))

    async def read_spend() -> None:
        nonlocal cursor
        request = reward_pb2.ReadRewardedListsRequest(cursor=cursor, min_age=min_age)
        async for part in log.ReadRewardedLists(request, timeout=CALL_TIMEOUT_S):
            for rewarded in part.rewarded_lists:
                for outcome in rewarded.outcomes:
                    pacing.spend(outcome.ad_id, outcome.revenue_micros)
            cursor = part.cursor

    async def change() -> None:
        for ad_id, active in list(pending.items()):
            state = sid_pb2.AD_STATE_ACTIVE if active else sid_pb2.AD_STATE_PAUSED
            await catalogue.UpdateAd(sid_pb2.UpdateAdRequest(ad_id=ad_id, state=state), timeout=CALL_TIMEOUT_S)
            del pending[ad_id]
            counts.resumed += active
            counts.paused += not active

    async def patiently(work: Callable[[], object]) -> bool:
        """Do a part of the work; a service that is away leaves the rest of it for the next look."""
        try:
            await work()  # type: ignore[misc]
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY:
                raise
            return False
        return True

    while not until.is_set():
        await patiently(read_spend)
        pending |= pacing.changes(*clock())
        await patiently(change)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await until.wait()
    pending |= pacing.release()
    while True:
        if await patiently(change):
            return counts
        await back_off(every_s)
