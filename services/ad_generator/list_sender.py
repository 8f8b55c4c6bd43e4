"""Sends served lists to the reward log, off the request path."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.generation.v1 import generation_pb2
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.log import get_logger

log = get_logger(__name__)

LARGEST_BATCH: Final = 64
"""Lists per call: what the event loop can serialise in a few milliseconds."""
LINGER_S: Final = 0.2
"""How long the first list of a batch waits for others."""
CALL_TIMEOUT_S: Final = 5.0
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 5.0
REFUSALS: Final = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE}
)
"""Codes that no retry changes; every other failure is retried."""
LOG_INTERVAL_S: Final = 5.0
"""Drops are counted one by one and logged at most this often, since a full queue drops at the rate of the traffic."""


@dataclass(frozen=True)
class Served:
    """What was answered to whom; made into a ServedList only when it is sent.

    Attributes:
        request: What was asked.
        response: What was answered.
        serve_time_ns: When, in Unix nanoseconds.
        traceparent: W3C traceparent of the request; empty where it was not traced.
        channel: Channel whose policy answered.
        bucket: The user's bucket in an A/B split; None where the caller sent none.
        latency_us: Time from the request's arrival to its answer, in microseconds.
    """

    request: generation_pb2.GenerateAdsRequest
    response: generation_pb2.GenerateAdsResponse
    serve_time_ns: int
    traceparent: str
    channel: str
    bucket: int | None
    latency_us: int


def served_list(served: Served) -> reward_pb2.ServedList:
    """Translate an answer into the reward log's form."""
    seconds, nanos = divmod(served.serve_time_ns, 1_000_000_000)
    return reward_pb2.ServedList(
        request_id=served.request.request_id,
        user_context=served.request.user_context,
        candidates=served.response.candidates,
        policy=served.response.policy,
        widths=served.response.beam_trace.widths,
        serve_time=Timestamp(seconds=seconds, nanos=nanos),
        traceparent=served.traceparent,
        channel=served.channel,
        bucket=served.bucket,
        latency_us=served.latency_us,
    )


class ListSender:
    """A bounded queue that a background task empties into the reward log.

    A full queue drops its oldest list for the newest: after an outage the freshest lists are worth most to the trainer.
    """

    def __init__(self, stub: reward_pb2_grpc.RewardServiceAsyncStub, queue_limit: int) -> None:
        """Make a sender; `run` must be running for lists to be sent."""
        self._stub = stub
        self._queue_limit = queue_limit
        self._queue: deque[Served] = deque()
        self._in_flight = 0
        self._logged_at = -LOG_INTERVAL_S
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self.sent = 0
        """Lists that the reward log has accepted."""
        self.dropped = 0
        """Lists given up: the queue was full, the reward log refused them, or the service stopped."""

    @property
    def queued(self) -> int:
        """Lists not yet accepted by the reward log."""
        return len(self._queue) + self._in_flight

    def offer(self, served: Served) -> None:
        """Queue a list; never waits and never fails."""
        if len(self._queue) >= self._queue_limit:
            self._queue.popleft()
            self._drop(1, "queue full", "give the reward log more capacity or raise GR4AD_LIST_QUEUE_LIMIT")
        self._queue.append(served)
        self._drained.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Send queued lists until cancelled."""
        while True:
            await self._arrived.wait()
            if len(self._queue) < LARGEST_BATCH:
                await asyncio.sleep(LINGER_S)
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(LARGEST_BATCH, len(self._queue)))]
                self._in_flight = len(batch)
                await self._send(batch)
            self._arrived.clear()
            self._drained.set()

    async def flush(self, timeout_s: float) -> None:
        """Wait until every queued list is sent; give up, and count as dropped, what is left after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            left = self.queued
            self._queue.clear()
            self._in_flight = 0
            self._drop(left, "service stopped", "lengthen GR4AD_DRAIN_SECONDS or look after the reward log")

    async def _send(self, batch: Sequence[Served]) -> None:
        wait_s = FIRST_WAIT_S
        request = reward_pb2.BatchCreateServedListsRequest()
        for served in batch:
            request.served_lists.append(served_list(served))
            await asyncio.sleep(0)  # requests do not wait for the translation of a whole batch
        while True:
            try:
                await self._stub.BatchCreateServedLists(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() in REFUSALS:
                    await self._refused(batch, error)
                    return
                log.warning("reward_log_unreachable", code=error.code().name, error=error.details(), queued=self.queued)
            else:
                self.sent += len(batch)
                self._in_flight -= len(batch)
                return
            await back_off(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _refused(self, batch: Sequence[Served], error: grpc.aio.AioRpcError) -> None:
        """Find the lists that the reward log refuses by halving, so that their neighbours are still stored."""
        if len(batch) == 1:
            self._in_flight -= 1
            self._drop(1, error.details() or error.code().name, "a list that the reward log refuses is lost")
            return
        middle = len(batch) // 2
        await self._send(batch[:middle])
        await self._send(batch[middle:])

    def _drop(self, count: int, reason: str, remedy: str) -> None:
        self.dropped += count
        if time.monotonic() - self._logged_at < LOG_INTERVAL_S:
            return
        self._logged_at = time.monotonic()
        log.warning("served_lists_dropped", count=count, total=self.dropped, reason=reason, remedy=remedy)
