"""One request from its arrival to its answer; every protocol comes here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Set
from typing import Final

from gr4ad.generation.v1 import generation_pb2
from gr4ad_runtime.errors import UnavailableError
from gr4ad_runtime.telemetry import current_traceparent

from ad_generator.arrival import Arrival
from ad_generator.batcher import Batched, Batcher
from ad_generator.engine import Engine, Generated, Query
from ad_generator.list_sender import ListSender, Served
from ad_generator.message_translation import query_of, response_of
from ad_generator.request_trace import record_spans
from ad_generator.result_cache import ResultCache, request_key
from ad_generator.shared_computation import SharedComputations

Response = generation_pb2.GenerateAdsResponse

ANSWERED_WITHIN: Final = 0.9
"""Share of its time in which a request must be computed; what is left is for the ways that are not seen here, from the
caller and back, and for writing the answer down."""


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
        cache: ResultCache | None = None,
    ) -> None:
        """Wire the parts.

        Args:
            engine: What is served.
            batcher: Runs the engine.
            sender: Takes the answers for the reward log.
            channel: Channel that the engine follows, for messages and the log.
            default_budget_us: Time of a request that states none.
            cache: Keeps answers; without one each request is answered by a computation of its own.
        """
        self._engine = engine
        self._batcher = batcher
        self._sender = sender
        self._channel = channel
        self._default_budget_us = default_budget_us
        self.cache = cache
        """Answers kept; None where none are."""
        self.computations: SharedComputations[Batched[Generated]] = SharedComputations()
        """What is computed for equal requests; unused without a cache."""
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
        response, batched = await self._answer(request, time.monotonic() + ANSWERED_WITHIN * budget_s)
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

    async def _answer(
        self, request: generation_pb2.GenerateAdsRequest, deadline: float
    ) -> tuple[Response, Batched[Generated] | None]:
        """Return the answer, and how it was computed where it was computed for this request."""
        if self.cache is None:
            batched = await self._submit(request, deadline)
            return self._response(batched.result, Response.ORIGIN_COMPUTED), batched
        state = self._engine.state
        assert state is not None
        key = request_key(request)
        kept = self.cache.find(key, state.policy, state.mirror.table)
        if kept is not None:
            return kept, None
        began = self.cache.moment(state.policy, state.mirror.table)
        # Who asks after a swap shares nothing with those before it.
        question = (key, state.policy.ref.policy_id, state.policy.ref.sha256)
        batched, shared = await self.computations.result(question, deadline, lambda: self._submit(request, deadline))
        found = batched.result
        if shared:
            return self._response(found, Response.ORIGIN_SHARED), None
        response = self._response(found, Response.ORIGIN_COMPUTED)
        whole = len(response.candidates) == len(found.slots)  # none of its ads died meanwhile
        if whole and found.policy is began.policy and found.table is began.table:
            self.cache.keep(key, began, response, found.slots, request.candidate_count)
        return response, batched

    def _submit(
        self, request: generation_pb2.GenerateAdsRequest, deadline: float
    ) -> asyncio.Future[Batched[Generated]]:
        return self._batcher.submit(lambda: query_of(request), request.candidate_count, deadline)

    def _response(self, generated: Generated, origin: Response.Origin.ValueType) -> Response:
        response = response_of(generated, self._shown(generated))
        response.origin = origin
        return response

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
