"""The demo's online phase: two arms, outcomes, pacing, and a policy that learns from what was shown."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from gr4ad.reward.v1 import reward_pb2
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_core.learning.data_folder import Item

from gr4ad_tools import train
from gr4ad_tools.ab import arm_figures
from gr4ad_tools.arm_log import read_arms
from gr4ad_tools.audience import Audience, MarketAudience, ReplayAudience, seeded_bids
from gr4ad_tools.demo.arms import (
    GENERATORS,
    POLL_S,
    RPC_TIMEOUT_S,
    lists_handed_over,
    reward_summary,
    until_served,
    update_ads,
)
from gr4ad_tools.demo.kills import kill_in_turn
from gr4ad_tools.figures import Figure, percentile
from gr4ad_tools.leave_one_out import LeaveOneOut
from gr4ad_tools.online_traffic import OnlineTraffic, run_online
from gr4ad_tools.pacing import Pacing, PacingCounts, run_pacing
from gr4ad_tools.simulate import Market
from gr4ad_tools.split import CANARY, STABLE, Split
from gr4ad_tools.tracker import Tracker
from gr4ad_tools.up import Suite

REQUESTS = 4096
PUBLISH_LISTS = 512
CANDIDATES = 32
"""Ads asked for; the first page of them is shown, and all of them are learned from."""
USERS = 16
PAGE_SIZE = 5
"""Of a real data folder; a market has its own."""
CANARY_PERCENT = 50
OUTCOME_WAIT_S = 2.0
PACING_EVERY_S = 2.0
PUBLISH_S = 10.0
"""Time after which the trainer publishes what it has learned from fewer lists."""
LEARN_WAIT_S = 180.0


@dataclass
class OnlinePhase:
    """What the phase saw.

    Attributes:
        traffic: Requests, answers and reactions.
        publications: Policies published meanwhile, in order.
        run: The training run, as it ended.
        pacing: What the pacing loop did.
        first_cursor: Of the reward log, before the phase.
        lists_unjoined: Lists of the phase that got no outcome, not even an impression.
        events_unjoined: Outcomes whose list is not in the log: a generator that is killed takes its queue with it.
        restarts: How often each service was started again.
        trace_id: Of a report of outcomes that was traced.
        figures: Of the phase.
    """

    traffic: OnlineTraffic = field(default_factory=OnlineTraffic)
    publications: list[training_pb2.Policy] = field(default_factory=list)
    run: training_pb2.TrainingRun = field(default_factory=training_pb2.TrainingRun)
    pacing: PacingCounts = field(default_factory=PacingCounts)
    first_cursor: int = 0
    lists_unjoined: int = 0
    events_unjoined: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    trace_id: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)


def market_audience(
    market: Market, split: LeaveOneOut, items: Sequence[Item], seed: int
) -> tuple[MarketAudience, Pacing]:
    """Return the market's users after its log, and the rule that paces its campaigns' active ads."""
    campaign_N, budget_G = market.budgets()
    active = [item.item_id for item in items if item.state == "active"]
    campaign_of = {ad_id: int(campaign_N[market.ad_index[ad_id]]) for ad_id in active}
    pacing = Pacing(campaign_of, {campaign: float(budget) for campaign, budget in enumerate(budget_G)})
    return MarketAudience(market, split.interactions, seed), pacing


async def replay_audience(
    split: LeaveOneOut, items: Sequence[Item], sids: grpc.aio.Channel, seed: int
) -> tuple[ReplayAudience, bool]:
    """Return the folder's users at their validation events, and whether bids had to be made up for them.

    Bids that were made up are set in the catalogue, so that all services reckon with the same.
    """
    bids, made_up = seeded_bids({item.item_id: item.bid_micros for item in items}, seed)
    if made_up:
        await update_ads(
            sid_pb2_grpc.SidServiceStub(sids),
            [sid_pb2.UpdateAdRequest(ad_id=ad_id, bid_micros=bid) for ad_id, bid in bids.items()],
        )
    item_ids = split.interactions.item_ids
    chosen = [item_ids[split.interactions.items[event]] for event in split.validation_M]
    return ReplayAudience(split.validation_contexts(), chosen, bids, PAGE_SIZE), made_up


async def learn_online(
    suite: Suite,
    channels: Mapping[str, grpc.aio.Channel],
    traced: grpc.aio.Channel,
    tracker: Tracker,
    audience: Audience,
    pacing: Pacing | None,
    *,
    policy_id: str,
    seed: int,
    run_id: str,
    chaos: bool,
    preference: train.Preference,
    on_progress: Callable[[float, str], None],
) -> OnlinePhase:
    """Serve an audience on two arms, let one of them learn, and wait until what it learned last is served.

    Args:
        suite: The running suite, with a canary.
        channels: Channel to each process.
        traced: Traced channel to the reward logger.
        tracker: Reports what was shown; it must be running.
        audience: Who asks.
        pacing: The rule for campaigns that have budgets; None for none.
        policy_id: What both arms serve by now.
        seed: Of the bootstrap.
        run_id: Unique per run.
        chaos: Whether to kill each service in turn meanwhile.
        preference: What moves the policy towards what pays.
        on_progress: Called with the share of the phase that is done, and a note.
    """
    trainer = suite.addresses["rspo_trainer"]
    training = training_pb2_grpc.TrainingServiceStub(channels["rspo_trainer"])
    await lists_handed_over(channels)  # of the phases before: they are no part of this one
    before = await reward_summary(channels["reward_logger"])
    phase = OnlinePhase(first_cursor=before.last_cursor)
    source = training_pb2.OnlineSource(
        policy_id=policy_id,
        cursor=phase.first_cursor,
        publish_lists=PUBLISH_LISTS,
        preference=preference.message,
    )
    learning = asyncio.create_task(
        train.train_and_wait(
            trainer,
            online=source,
            channel=CANARY,
            request_id=f"{run_id}-online",
            progress=lambda run: setattr(phase, "run", run),
        )
    )
    answered = 0

    def count() -> None:
        nonlocal answered
        answered += 1
        on_progress(min(1.0, answered / REQUESTS), f"{answered} requests, {REQUESTS} at least")

    killing = asyncio.create_task(kill_in_turn(suite, channels, lambda: answered, REQUESTS)) if chaos else None
    try:
        async with _paced(channels, audience, pacing, phase):
            phase.traffic = await run_online(
                audience,
                {name: channels[process] for name, process in GENERATORS.items()},
                Split(run_id, CANARY_PERCENT),
                tracker,
                requests=REQUESTS,
                go_on=lambda: killing is not None and not killing.done(),
                candidate_count=CANDIDATES,
                users=USERS,
                run_id=f"{run_id}-online",
                on_answer=count,
            )
            await tracker.drain()
        if killing is not None:
            await killing
        await lists_handed_over(channels)
        after = await reward_summary(channels["reward_logger"])
        phase.lists_unjoined = after.lists_without_events - before.lists_without_events
        phase.events_unjoined = after.unjoined_events - before.unjoined_events
        on_progress(1.0, "learning from the last lists")
        await _learned_to_the_end(channels["reward_logger"], phase, learning)
    finally:
        for task in (learning, killing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    phase.run = await _ended(training, phase.run.run_id)
    phase.publications = await _publications(training, phase.run)
    if phase.publications:
        await until_served(channels[GENERATORS[CANARY]], phase.publications[-1].policy.policy_id)
    phase.trace_id = tracker.trace_id
    phase.restarts = suite.restarts
    log = await read_arms(traced, phase.first_cursor)
    phase.figures = {**arm_figures(log, STABLE, CANARY, seed), **_phase_figures(phase)}
    return phase


def event_figures(
    tracker: Tracker, before: reward_pb2.GetRewardSummaryResponse, after: reward_pb2.GetRewardSummaryResponse
) -> dict[str, Figure]:
    """Return what became of the events that the log acknowledged; `events_lost` is negative if some count twice."""

    def events(summary: reward_pb2.GetRewardSummaryResponse) -> int:
        return summary.impressions + summary.clicks + summary.conversions

    stored = events(after) - events(before)
    return {
        "events_accepted": Figure(tracker.accepted, "events"),
        "events_stored": Figure(stored, "events"),
        "events_duplicate": Figure(tracker.duplicates, "events"),
        "events_lost": Figure(tracker.accepted - stored, "events", tracker.accepted),
    }


def _phase_figures(phase: OnlinePhase) -> dict[str, Figure]:
    traffic, metrics = phase.traffic, phase.run.metrics
    answered = len(traffic.shown)
    return {
        "online_p99_ms": percentile([shown.latency_ms for shown in traffic.shown], 99, "ms"),
        "online_qps": Figure(answered / traffic.seconds, "requests/s", answered),
        "online_failed": Figure(traffic.failures.total(), "requests", answered + traffic.failures.total()),
        "online_retries": Figure(traffic.retries.total(), "calls", answered),
        "online_steps": Figure(phase.run.step, "steps"),
        "online_lists": Figure(metrics.get("lists", 0.0), "lists"),
        "online_published": Figure(len(phase.publications), "policies"),
        "online_refused": Figure(metrics.get("refused", 0.0), "policies"),
        "lists_unjoined": Figure(phase.lists_unjoined, "lists", answered),
        "events_unjoined": Figure(phase.events_unjoined, "events"),
        "ads_paced": Figure(phase.pacing.paused, "pauses"),
        "service_restarts": Figure(sum(phase.restarts.values()), "restarts"),
    }


@contextlib.asynccontextmanager
async def _paced(
    channels: Mapping[str, grpc.aio.Channel], audience: Audience, pacing: Pacing | None, phase: OnlinePhase
) -> AsyncIterator[None]:
    """Pace the campaigns of a market while the block runs."""
    until = asyncio.Event()

    async def pace() -> None:
        if pacing is not None and isinstance(audience, MarketAudience):
            phase.pacing = await run_pacing(
                pacing,
                channels["reward_logger"],
                channels["sid_assigner"],
                clock=audience.clock,
                cursor=phase.first_cursor,
                every_s=PACING_EVERY_S,
                outcome_wait_s=OUTCOME_WAIT_S,
                until=until,
            )

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pace())
        try:
            yield
        finally:
            until.set()


async def _learned_to_the_end(
    rewards: grpc.aio.Channel, phase: OnlinePhase, learning: asyncio.Task[training_pb2.TrainingRun]
) -> None:
    """Wait until the run has kept all that the log teaches: it is published then, or the gate has refused it.

    Raises:
        TrainingRunError: The run failed.
    """
    last_cursor = (await reward_summary(rewards)).last_cursor
    give_up = time.monotonic() + LEARN_WAIT_S
    while phase.run.cursor < last_cursor and time.monotonic() < give_up:
        if learning.done():
            learning.result()
        await asyncio.sleep(POLL_S)


async def _publications(
    training: training_pb2_grpc.TrainingServiceAsyncStub, run: training_pb2.TrainingRun
) -> list[training_pb2.Policy]:
    """Return the policies published since a run was created, in order."""
    listed = await training.ListPolicies(
        training_pb2.ListPoliciesRequest(page_size=1000), timeout=RPC_TIMEOUT_S, wait_for_ready=True
    )
    since = run.create_time.ToNanoseconds()
    return [policy for policy in listed.policies if policy.create_time.ToNanoseconds() >= since][::-1]


async def _ended(training: training_pb2_grpc.TrainingServiceAsyncStub, run_id: str) -> training_pb2.TrainingRun:
    """Wait for the end of a run that was cancelled."""
    request = training_pb2.GetTrainingRunRequest(run_id=run_id)
    while True:
        answer = await training.GetTrainingRun(request, timeout=RPC_TIMEOUT_S, wait_for_ready=True)
        if answer.training_run.state in train.ENDED:
            return answer.training_run
        await asyncio.sleep(POLL_S)
