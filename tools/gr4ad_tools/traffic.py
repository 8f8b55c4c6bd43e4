"""Closed-loop users: each sends a request, waits for the answer, and at once sends the next.

Every answer is kept with the moment it was asked for and the moment it came, so that what was served can be held
against what was live at that time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.type.v1 import type_pb2

REQUEST_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Answer:
    """One answered request, its ads in the generator's order; times are of the monotonic clock, in seconds."""

    request_id: str
    visit: int
    sent: float
    received: float
    ad_ids: tuple[str, ...]
    log_probs: tuple[float, ...]
    widths: tuple[int, ...]
    policy_id: str

    @property
    def by_likelihood(self) -> list[str]:
        """The ads by falling log-probability."""
        return [ad_id for _, ad_id in sorted(zip(self.log_probs, self.ad_ids, strict=True), key=lambda ad: -ad[0])]

    @property
    def latency_ms(self) -> float:
        """Time from sending to the answer, in milliseconds, as the caller saw it."""
        return 1000.0 * (self.received - self.sent)


@dataclass
class Traffic:
    """What a run of traffic saw."""

    answers: list[Answer] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def latencies_ms(self) -> list[float]:
        """Latencies of all answered requests, in milliseconds."""
        return [answer.latency_ms for answer in self.answers]

    @property
    def failed(self) -> int:
        """Requests that got no answer."""
        return self.failures.total()


async def run_users(
    channel: grpc.aio.Channel,
    visits: Sequence[type_pb2.UserContext],
    *,
    users: int,
    candidate_count: int,
    run_id: str,
    until: asyncio.Event,
    on_answer: Callable[[Answer], None] | None = None,
) -> Traffic:
    """Let `users` concurrent users work through `visits`, again and again, until the event is set.

    Args:
        channel: Channel to a generator.
        visits: Contexts to ask with; user k takes k, k + users, ….
        users: How many requests are under way at any time.
        candidate_count: Ads wanted per request.
        run_id: Prefix of the request ids; unique per run.
        until: Ends the run; requests under way are finished.
        on_answer: Called with every answer as it comes.
    """
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    traffic = Traffic()
    start = time.monotonic()

    async def user(number: int) -> None:
        turn = number
        while not until.is_set():
            visit = turn % len(visits)
            answer = await ask(stub, visits[visit], f"{run_id}-{turn}", candidate_count, visit, traffic.failures)
            turn += users
            if answer is not None:
                traffic.answers.append(answer)
                if on_answer is not None:
                    on_answer(answer)

    await asyncio.gather(*(user(number) for number in range(users)))
    traffic.seconds = time.monotonic() - start
    return traffic


async def ask(
    stub: generation_pb2_grpc.GenerationServiceAsyncStub,
    context: type_pb2.UserContext,
    request_id: str,
    candidate_count: int,
    visit: int,
    failures: Counter[str],
) -> Answer | None:
    """Send one request; a failed one is counted under its status code and gives None."""
    request = generation_pb2.GenerateAdsRequest(
        request_id=request_id, user_context=context, candidate_count=candidate_count
    )
    sent = time.monotonic()
    try:
        response = await stub.GenerateAds(request, timeout=REQUEST_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        failures[error.code().name] += 1
        return None
    return Answer(
        request_id=request_id,
        visit=visit,
        sent=sent,
        received=time.monotonic(),
        ad_ids=tuple(candidate.ad_id for candidate in response.candidates),
        log_probs=tuple(candidate.log_prob for candidate in response.candidates),
        widths=tuple(response.beam_trace.widths),
        policy_id=response.policy.policy_id,
    )
