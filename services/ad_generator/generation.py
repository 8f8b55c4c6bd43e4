"""One request from its arrival to its answer; every protocol comes here."""

from __future__ import annotations

import time
from collections.abc import Set

from gr4ad.generation.v1 import generation_pb2
from gr4ad_runtime.errors import UnavailableError
from gr4ad_runtime.telemetry import current_traceparent

from ad_generator.arrival import Arrival
from ad_generator.batcher import Batcher
from ad_generator.engine import Engine, Generated, Query
from ad_generator.list_sender import ListSender, Served
from ad_generator.message_translation import query_of, response_of
from ad_generator.request_trace import record_spans


class Generation:
    """Answers requests with the engine's current policy and hands each answer to the reward log's sender."""

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher[Query, Generated],
        sender: ListSender,
        *,
        channel: str,
        default_budget_us: int,
    ) -> None:
        """Wire the parts.

        Args:
            engine: What is served.
            batcher: Runs the engine.
            sender: Takes the answers for the reward log.
            channel: Channel that the engine follows, for messages and the log.
            default_budget_us: Time of a request that states none.
        """
        self._engine = engine
        self._batcher = batcher
        self._sender = sender
        self._channel = channel
        self._default_budget_us = default_budget_us
        self.answered = 0
        """Requests answered."""

    async def generate(
        self, request: generation_pb2.GenerateAdsRequest, arrival: Arrival
    ) -> generation_pb2.GenerateAdsResponse:
        """Answer a valid request.

        Args:
            request: The request.
            arrival: How it came. The shorter of its remaining time and the request's latency budget counts.

        Raises:
            UnavailableError: No policy and catalogue are loaded yet.
            ResourceExhaustedError: Too many requests wait.
            DeadlineExceededError: The time was over before the request's turn came.
        """
        if self._engine.state is None:
            raise UnavailableError(
                "policy",
                f"none loaded from channel {self._channel}",
                "publish a policy to the channel, then retry; GetEngineStatus tells whether one was refused",
            )
        budget_s = (request.latency_budget_us or self._default_budget_us) * 1e-6
        if arrival.time_remaining_s is not None:
            budget_s = min(budget_s, arrival.time_remaining_s)
        batched = await self._batcher.submit(query_of(request), time.monotonic() + budget_s)
        response = response_of(batched.result, self._shown(batched.result))
        if not arrival.test:
            self._sender.offer(
                Served(
                    request,
                    response,
                    time.time_ns(),
                    current_traceparent(),
                    self._channel,
                    arrival.bucket,
                    arrival.elapsed_us(),
                )
            )
        self.answered += 1
        record_spans(request, response, batched)
        return response

    def advertiser_of(self, ad_id: str) -> str | None:
        """Return the account that pays for an ad of the current catalogue; None for an ad that is not in it."""
        return None if self._engine.state is None else self._engine.state.mirror.table.advertiser_of(ad_id)

    def _shown(self, generated: Generated) -> Set[int]:
        """Look at each candidate's state once more: a pause that came during the search counts, too."""
        state = self._engine.state
        assert state is not None
        table = state.mirror.table
        if generated.table is table:
            return table.live_slots
        # The catalogue was replaced meanwhile, and only the new one hears of pauses.
        ad_ids = generated.table.ad_ids
        return {slot for slot in generated.slots if table.is_live(ad_ids[slot])}
