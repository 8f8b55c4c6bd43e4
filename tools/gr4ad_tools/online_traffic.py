"""Users of two arms while a policy learns: each is served by the generator of the user's bucket, and reacts."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import grpc
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc

from gr4ad_tools.audience import Audience, Visit
from gr4ad_tools.split import BUCKET_HEADER, Split
from gr4ad_tools.tracker import AWAY, CLICK, CONVERSION, Tracker

REQUEST_TIMEOUT_S = 5.0
RETRY_S = 0.2
RETRIES = 150  # half a minute: a generator that was killed is back by then


@dataclass(frozen=True)
class Shown:
    """One answered request and what came of it.

    Attributes:
        channel: The arm.
        user_id: Whose.
        at: When it was answered, in seconds of the monotonic clock.
        latency_ms: How long the answer took.
        policy_id: Who wrote it.
        impressions: Ads shown.
        clicks: Clicks.
        charge_micros: What the advertisers pay.
    """

    channel: str
    user_id: str
    at: float
    latency_ms: float
    policy_id: str
    impressions: int
    clicks: int
    charge_micros: int


@dataclass
class OnlineTraffic:
    """What a phase of online traffic saw; times are of the monotonic clock."""

    start: float = 0.0
    seconds: float = 0.0
    shown: list[Shown] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Answered:
    visit: Visit
    channel: str
    request_id: str
    at: float
    latency_ms: float
    response: generation_pb2.GenerateAdsResponse


async def run_online(
    audience: Audience,
    generators: Mapping[str, grpc.aio.Channel],
    split: Split,
    tracker: Tracker,
    *,
    requests: int,
    go_on: Callable[[], bool] = lambda: False,
    candidate_count: int,
    users: int,
    run_id: str,
    on_answer: Callable[[], None] = lambda: None,
) -> OnlineTraffic:
    """Let users ask, show them what they get, and report what they do.

    Args:
        audience: Who asks; reactions are drawn in the order of the visits, whatever the order of the answers.
        generators: Channel to the generator of each arm.
        split: Which arm serves a user.
        tracker: Reports what was shown and done; it must be running.
        requests: How many requests at least.
        go_on: Tells whether to go on all the same once there were so many.
        candidate_count: Ads asked for; a page of them is shown.
        users: Requests under way at any time.
        run_id: Prefix of the request ids; unique per run.
        on_answer: Called after each request.
    """
    stubs = {name: generation_pb2_grpc.GenerationServiceStub(channel) for name, channel in generators.items()}
    traffic = OnlineTraffic(start=time.monotonic())
    numbered: Iterator[tuple[int, Visit]] = enumerate(audience.visits())
    visits = itertools.takewhile(lambda visit: visit[0] < requests or go_on(), numbered)
    waiting: dict[int, _Answered | None] = {}
    settled = 0

    def settle() -> None:
        """React to all answers that no earlier visit is still waited for."""
        nonlocal settled
        ready: list[_Answered] = []
        while settled in waiting:
            answered = waiting.pop(settled)
            settled += 1
            if answered is not None:
                ready.append(answered)
        if ready:
            _react(audience, tracker, ready, traffic)

    async def user() -> None:
        for number, visit in visits:
            waiting[number] = await _ask(stubs, split, visit, f"{run_id}-{number}", candidate_count, traffic)
            settle()
            on_answer()

    await asyncio.gather(*(user() for _ in range(users)))
    traffic.seconds = time.monotonic() - traffic.start
    return traffic


async def _ask(
    stubs: Mapping[str, generation_pb2_grpc.GenerationServiceAsyncStub],
    split: Split,
    visit: Visit,
    request_id: str,
    candidate_count: int,
    traffic: OnlineTraffic,
) -> _Answered | None:
    """Ask until the arm's generator answers; a generator that is away is waited for, with every attempt counted."""
    channel = split.channel(visit.user_id)
    request = generation_pb2.GenerateAdsRequest(user_context=visit.context, candidate_count=candidate_count)
    metadata = ((BUCKET_HEADER, str(split.bucket(visit.user_id))),)
    for attempt in range(RETRIES):
        # An id of its own each time: a list whose answer was lost on the way is another one than the list shown.
        request.request_id = f"{request_id}-{attempt}" if attempt else request_id
        sent = time.monotonic()
        try:
            response = await stubs[channel].GenerateAds(request, timeout=REQUEST_TIMEOUT_S, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY:
                traffic.failures[f"{channel} {error.code().name}"] += 1
                return None
            traffic.retries[f"{channel} {error.code().name}"] += 1
            await asyncio.sleep(RETRY_S)
        else:
            received = time.monotonic()
            return _Answered(visit, channel, request.request_id, received, 1000.0 * (received - sent), response)
    traffic.failures[f"{channel} AWAY"] += 1
    return None


def _react(audience: Audience, tracker: Tracker, answers: list[_Answered], traffic: OnlineTraffic) -> None:
    pages = [
        [ad.ad_id for ad in answer.response.candidates if audience.knows(ad.ad_id)][: audience.page_size]
        for answer in answers
    ]
    reactions = audience.respond([answer.visit for answer in answers], pages)
    for answer, page, of_page in zip(answers, pages, reactions, strict=True):
        for position, (ad_id, reaction) in enumerate(zip(page, of_page, strict=True)):
            tracker.shown(answer.request_id, ad_id, position)
            if reaction.clicked:
                tracker.responded(answer.request_id, ad_id, position, CLICK, reaction.click_micros)
            if reaction.converted:
                tracker.responded(answer.request_id, ad_id, position, CONVERSION, reaction.conversion_micros)
        traffic.shown.append(
            Shown(
                channel=answer.channel,
                user_id=answer.visit.user_id,
                at=answer.at,
                latency_ms=answer.latency_ms,
                policy_id=answer.response.policy.policy_id,
                impressions=len(page),
                clicks=sum(reaction.clicked for reaction in of_page),
                charge_micros=sum(reaction.click_micros + reaction.conversion_micros for reaction in of_page),
            )
        )
