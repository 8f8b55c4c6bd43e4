"""The tracker's side of the loop: what was shown and what users did with it, reported until the log has it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
from google.protobuf import timestamp_pb2
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.telemetry import tracer
from opentelemetry.trace import format_trace_id

from gr4ad_tools.traffic import Answer

BATCH = 500
LINGER_S = 0.2
TIMEOUT_S = 10.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 2.0
AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
CLICK, CONVERSION = reward_pb2.FEEDBACK_TYPE_CLICK, reward_pb2.FEEDBACK_TYPE_CONVERSION


class Tracker:
    """Reports events in batches, in the background, each until the log has acknowledged it.

    A call whose answer was lost is repeated: the log then tells its events as duplicates, and keeps them once.

    Attributes:
        accepted: Events acknowledged, as stored or as duplicates.
        stored: Events that the log told as new.
        duplicates: Events that it had already.
        trace_id: Of the report that was traced; empty before.
    """

    def __init__(self, channel: grpc.aio.Channel, traced: grpc.aio.Channel | None = None) -> None:
        """Report to a reward log; `run` must be running.

        Args:
            channel: Channel to it.
            traced: Another one, of which one call with feedback is made under a trace of its own; None for no trace.
        """
        self.accepted = self.stored = self.duplicates = 0
        self.trace_id = ""
        self._stub = reward_pb2_grpc.RewardServiceStub(channel)
        self._traced = None if traced is None else reward_pb2_grpc.RewardServiceStub(traced)
        self._impressions: deque[reward_pb2.Impression] = deque()
        self._feedback: deque[reward_pb2.Feedback] = deque()
        self._arrived, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()

    def shown(self, request_id: str, ad_id: str, position: int) -> None:
        """Report an impression, now."""
        self._impressions.append(
            reward_pb2.Impression(
                event_id=f"{request_id}-{position}",
                request_id=request_id,
                ad_id=ad_id,
                position=position,
                event_time=_now(),
            )
        )
        self._wake()

    def responded(
        self, request_id: str, ad_id: str, position: int, kind: reward_pb2.FeedbackType.ValueType, revenue_micros: int
    ) -> None:
        """Report a response to an impression, now."""
        self._feedback.append(
            reward_pb2.Feedback(
                event_id=f"{request_id}-{position}",
                type=kind,
                request_id=request_id,
                ad_id=ad_id,
                revenue_micros=revenue_micros,
                event_time=_now(),
            )
        )
        self._wake()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Tracker]:
        """Send in the background for as long as the block lasts; at its end, all that is queued.

        Raises:
            grpc.aio.AioRpcError: The log refuses events.
        """
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(self._send_all())
            yield self
            await self.drain()
            sending.cancel()

    async def drain(self) -> None:
        """Wait until the log has acknowledged everything."""
        await self._idle.wait()

    def _wake(self) -> None:
        self._idle.clear()
        self._arrived.set()

    async def _send_all(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await asyncio.sleep(LINGER_S)
            while self._impressions or self._feedback:
                impressions = [self._impressions.popleft() for _ in range(min(BATCH, len(self._impressions)))]
                if impressions:
                    await self._until_safe(
                        self._stub, reward_pb2.BatchCreateImpressionsRequest(impressions=impressions)
                    )
                feedback = [self._feedback.popleft() for _ in range(min(BATCH, len(self._feedback)))]
                if feedback:
                    await self._report_feedback(reward_pb2.BatchCreateFeedbackRequest(feedback=feedback))
            if not self._arrived.is_set():
                self._idle.set()

    async def _report_feedback(self, request: reward_pb2.BatchCreateFeedbackRequest) -> None:
        if self._traced is None:
            await self._until_safe(self._stub, request)
            return
        traced, self._traced = self._traced, None
        with tracer("gr4ad_tools").start_as_current_span("report outcomes") as span:
            self.trace_id = format_trace_id(span.get_span_context().trace_id)
            await self._until_safe(traced, request)

    async def _until_safe(
        self,
        stub: reward_pb2_grpc.RewardServiceAsyncStub,
        request: reward_pb2.BatchCreateImpressionsRequest | reward_pb2.BatchCreateFeedbackRequest,
    ) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            try:
                answer: reward_pb2.BatchCreateImpressionsResponse | reward_pb2.BatchCreateFeedbackResponse
                if isinstance(request, reward_pb2.BatchCreateImpressionsRequest):
                    answer = await stub.BatchCreateImpressions(request, timeout=TIMEOUT_S)
                else:
                    answer = await stub.BatchCreateFeedback(request, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() not in AWAY:
                    raise
            else:
                self.stored += answer.stored_count
                self.duplicates += answer.duplicate_count
                self.accepted += answer.stored_count + answer.duplicate_count
                return
            await back_off(wait_s)
            wait_s = min(2.0 * wait_s, LONGEST_WAIT_S)


async def report_outcomes(
    tracker: Tracker,
    answers: Sequence[Answer],
    *,
    page_size: int,
    clicked: Callable[[int], set[str]],
    bid_micros: Callable[[str], int],
) -> tuple[int, int]:
    """Report the first `page_size` ads of each answer as shown, and those the user is known to choose as converted.

    Args:
        tracker: Reports them; it must be running.
        answers: The served lists.
        page_size: Ads shown of each list.
        clicked: The ads that the user of a visit goes on to choose, by visit.
        bid_micros: What an ad's advertiser pays for it, by ad.

    Returns:
        How many impressions and how many conversions there were.
    """
    shown = responded = 0
    for answer in answers:
        chosen = clicked(answer.visit)
        for position, ad_id in enumerate(answer.ad_ids[:page_size]):
            tracker.shown(answer.request_id, ad_id, position)
            shown += 1
            if ad_id in chosen:
                tracker.responded(answer.request_id, ad_id, position, CONVERSION, bid_micros(ad_id))
                responded += 1
    await tracker.drain()
    return shown, responded


def _now() -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(time.time_ns())
    return stamp
