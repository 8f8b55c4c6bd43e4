"""The client of the load: requests at scheduled moments whatever becomes of those before, or users who wait.

Each function here fills a process of its own with one event loop, so that neither the generator's supervisor nor the
accounting delays a request. What it finds travels back as plain data. Moments are of the monotonic clock, in seconds,
which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.status_details import METADATA_KEY

ANSWERED: Final = "OK"
REFUSED: Final = "RESOURCE_EXHAUSTED"
LATE: Final = "DEADLINE_EXCEEDED"
CALL_TIMEOUT_S: Final = 5.0
"""Deadline of a call, far behind its latency budget: the generator decides what is too late, not the connection."""
LEAD_S: Final = 0.05
"""Between the connection and the first moment of a schedule."""
REQUEST_TIME_S: Final = 1_700_000_000
EVENT_SPREAD_S: Final = 30 * 86_400


class Questions(Protocol):
    """Whom to ask, and what; it is sent to the client's process."""

    @property
    def address(self) -> str:
        """Return the generator's host:port."""

    def request(self, run: str, user: int) -> generation_pb2.GenerateAdsRequest:
        """Return a user's request; its id differs by run and user."""


@dataclass(frozen=True)
class Target:
    """Whom to ask for what, each user with a history of chance.

    Attributes:
        address: host:port of a generator.
        ad_ids: Ads that users' histories are drawn from.
        events: Of each history.
        candidate_count: Ads wanted per request.
        budget_s: Latency budget of each request.
        seed: Of the histories.
    """

    address: str
    ad_ids: tuple[str, ...]
    events: int
    candidate_count: int
    budget_s: float
    seed: int

    def request(self, run: str, user: int) -> generation_pb2.GenerateAdsRequest:
        """Return a user's request; the same user has the same history in every run."""
        rng = np.random.default_rng([self.seed, user])
        ads, behaviors = rng.integers(0, len(self.ad_ids), self.events), rng.integers(1, 4, self.events)
        times = np.sort(REQUEST_TIME_S - rng.integers(0, EVENT_SPREAD_S, self.events))
        context = type_pb2.UserContext(user_id=f"user-{user}")
        context.request_time.seconds = REQUEST_TIME_S
        for ad, behavior, moment in zip(ads.tolist(), behaviors.tolist(), times.tolist(), strict=True):
            event = context.history.add(ad_id=self.ad_ids[ad], behavior=behavior)
            event.event_time.seconds = moment
        return generation_pb2.GenerateAdsRequest(
            request_id=f"{run}-{user}",
            user_context=context,
            candidate_count=self.candidate_count,
            latency_budget_us=int(1e6 * self.budget_s),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        user: Who asked.
        scheduled: When the request was due.
        sent: When it was sent.
        received: When its answer or refusal was here.
        code: Name of its status.
        scale: Factor on the widths; NaN without an answer.
        value: Σ probability · expected eCPM of the returned ads, in micros; NaN without an answer.
        ad_ids: The returned ads.
        retry_s: When to come again, as the refusal said; 0 where it said nothing.
        origin: Where the answer came from, as it said.
        policy_id: Which policy answered; empty without an answer.
    """

    user: int
    scheduled: float
    sent: float
    received: float
    code: str
    scale: float = math.nan
    value: float = math.nan
    ad_ids: tuple[str, ...] = ()
    retry_s: float = 0.0
    origin: int = generation_pb2.GenerateAdsResponse.ORIGIN_UNSPECIFIED
    policy_id: str = ""

    @property
    def latency_s(self) -> float:
        """From the moment the request was due, so that a client that falls behind hides nothing."""
        return self.received - self.scheduled

    @property
    def behind_s(self) -> float:
        """How far the client was behind its schedule."""
        return self.sent - self.scheduled


def open_loop(target: Questions, run: str, arrivals: Sequence[float], first_user: int) -> list[Outcome]:
    """Send requests at scheduled moments, each of another user, and wait until all are answered or refused.

    Args:
        target: Whom to ask for what.
        run: Prefix of the request ids; unique per run.
        arrivals: Moments, ascending, in seconds from the start.
        first_user: Number of the first user.

    Returns:
        An outcome per arrival, in the order of the schedule.
    """
    return asyncio.run(_open_loop(target, run, arrivals, first_user))


def closed_loop(target: Questions, run: str, users: Sequence[int], at_a_time: int, seconds: float) -> list[Outcome]:
    """Let users ask, some at a time, the next one when one is done; stop after the last user or when time is over.

    After a refusal the next user comes when the refusal said, give or take half.

    Args:
        target: Whom to ask for what.
        run: Prefix of the request ids; unique per run.
        users: Who asks.
        at_a_time: Requests under way at most.
        seconds: After which nobody asks any more.
    """
    return asyncio.run(_closed_loop(target, run, iter(users), at_a_time, seconds))


async def _open_loop(target: Questions, run: str, arrivals: Sequence[float], first_user: int) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    async with grpc.aio.insecure_channel(target.address) as channel:
        await channel.channel_ready()
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def ask(user: int, request: generation_pb2.GenerateAdsRequest, scheduled: float) -> None:
            outcomes[user] = await _ask(stub, user, request, scheduled)

        start = time.monotonic() + LEAD_S
        async with asyncio.TaskGroup() as calls:
            for user, arrival in enumerate(arrivals, first_user):
                request = target.request(run, user)  # while there is time
                await asyncio.sleep(max(0.0, start + arrival - time.monotonic()))
                calls.create_task(ask(user, request, start + arrival))
    return [outcomes[user] for user in range(first_user, first_user + len(arrivals))]


async def _closed_loop(
    target: Questions, run: str, users: Iterator[int], at_a_time: int, seconds: float
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    async with grpc.aio.insecure_channel(target.address) as channel:
        await channel.channel_ready()
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        end = time.monotonic() + seconds

        async def ask_in_turn() -> None:
            for user in users:  # shared: each takes the next user
                outcome = await _ask(stub, user, target.request(run, user), None)
                outcomes.append(outcome)
                if outcome.code != ANSWERED:
                    await asyncio.sleep(outcome.retry_s * random.uniform(0.5, 1.5))
                if time.monotonic() > end:
                    return

        async with asyncio.TaskGroup() as calls:
            for _ in range(at_a_time):
                calls.create_task(ask_in_turn())
    return outcomes


async def _ask(
    stub: generation_pb2_grpc.GenerationServiceAsyncStub,
    user: int,
    request: generation_pb2.GenerateAdsRequest,
    scheduled: float | None,
) -> Outcome:
    sent = time.monotonic()
    due = sent if scheduled is None else scheduled
    try:
        response = await stub.GenerateAds(request, timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return Outcome(user, due, sent, time.monotonic(), error.code().name, retry_s=retry_after_s(error))
    received = time.monotonic()
    return Outcome(
        user,
        due,
        sent,
        received,
        ANSWERED,
        response.beam_trace.scale,
        sum(math.exp(each.log_prob) * each.predicted_ecpm_micros for each in response.candidates),
        tuple(each.ad_id for each in response.candidates),
        origin=response.origin,
        policy_id=response.policy.policy_id,
    )


def retry_after_s(error: grpc.aio.AioRpcError) -> float:
    """Return when a refusal says to come again, in seconds; 0 where it says nothing."""
    for key, value in error.trailing_metadata() or ():
        if key == METADATA_KEY:
            assert isinstance(value, bytes)
            for detail in status_pb2.Status.FromString(value).details:
                retry = error_details_pb2.RetryInfo()
                if detail.Unpack(retry):
                    return float(retry.retry_delay.ToMicroseconds() * 1e-6)
    return 0.0
