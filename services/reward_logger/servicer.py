"""RewardService over gRPC: translates and delegates."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import grpc
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.db import Database
from gr4ad_runtime.telemetry import sampled_traceparent

from reward_logger import messages
from reward_logger.event_store import EventStore
from reward_logger.list_reader import ListReader
from reward_logger.list_store import ListStore
from reward_logger.store_telemetry import events_stored, lists_stored
from reward_logger.summary import summarise

Context = grpc.aio.ServicerContext[Any, Any]


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Answers the calls of RewardService."""

    def __init__(self, database: Database, read_chunk: int, window: timedelta) -> None:
        """Keep the log in `database`, attribute within `window`, and stream `read_chunk` lists at a time."""
        self._database = database
        self._window = window
        self._events = EventStore(database)
        self._lists = ListStore(database)
        self._reader = ListReader(database, read_chunk, window)

    async def BatchCreateServedLists(
        self, request: reward_pb2.BatchCreateServedListsRequest, context: Context
    ) -> reward_pb2.BatchCreateServedListsResponse:
        """Store lists that a generator returned."""
        start_ns = time.time_ns()
        lists = [messages.served_list(item, f"served_lists[{n}]") for n, item in enumerate(request.served_lists)]
        stored = await self._lists.add(lists)
        lists_stored(stored, start_ns)
        return reward_pb2.BatchCreateServedListsResponse(
            stored_count=len(stored), duplicate_count=len(lists) - len(stored)
        )

    async def BatchCreateImpressions(
        self, request: reward_pb2.BatchCreateImpressionsRequest, context: Context
    ) -> reward_pb2.BatchCreateImpressionsResponse:
        """Store impressions."""
        parent = sampled_traceparent()
        events = [messages.impression(item, f"impressions[{n}]", parent) for n, item in enumerate(request.impressions)]
        stored = await self._events.add_impressions(events)
        events_stored(stored)
        return reward_pb2.BatchCreateImpressionsResponse(stored_count=stored, duplicate_count=len(events) - stored)

    async def BatchCreateFeedback(
        self, request: reward_pb2.BatchCreateFeedbackRequest, context: Context
    ) -> reward_pb2.BatchCreateFeedbackResponse:
        """Store clicks and conversions."""
        parent = sampled_traceparent()
        events = [messages.feedback(item, f"feedback[{n}]", parent) for n, item in enumerate(request.feedback)]
        stored = await self._events.add_feedback(events)
        events_stored(stored)
        return reward_pb2.BatchCreateFeedbackResponse(stored_count=stored, duplicate_count=len(events) - stored)

    async def ReadRewardedLists(
        self, request: reward_pb2.ReadRewardedListsRequest, context: Context
    ) -> AsyncIterator[reward_pb2.ReadRewardedListsResponse]:
        """Stream served lists with their outcomes."""
        min_age = request.min_age.ToTimedelta()
        async with aclosing(self._reader.read(request.cursor, min_age)) as chunks:
            async for chunk in chunks:
                yield reward_pb2.ReadRewardedListsResponse(
                    rewarded_lists=map(messages.rewarded_list, chunk), cursor=chunk[-1].seq
                )

    async def GetRewardSummary(
        self, request: reward_pb2.GetRewardSummaryRequest, context: Context
    ) -> reward_pb2.GetRewardSummaryResponse:
        """Count what is stored."""
        return reward_pb2.GetRewardSummaryResponse(**asdict(await summarise(self._database, self._window)))
