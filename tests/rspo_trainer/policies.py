"""Policies made known and activated past any run, and a watcher of their channel."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from gr4ad.training.v1 import training_pb2
from gr4ad_runtime.db import Database
from gr4ad_runtime.telemetry import context_of
from opentelemetry.context import attach, detach
from rspo_trainer.policy_store import NewPolicy, add_policy

from tests.rspo_trainer.conftest import Trainer

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def publish(database: Database, *policy_ids: str) -> None:
    """Make policies known as a run does."""
    for policy_id in policy_ids:
        async with database.session() as session:
            await add_policy(session, NewPolicy(policy_id, "codebook", "0" * 64, f"store/{policy_id}", {"recall": 0.5}))


async def activate(trainer: Trainer, policy_id: str, channel: str = "stable") -> training_pb2.Policy:
    request = training_pb2.ActivatePolicyRequest(policy_id=policy_id, channel=channel)
    token = attach(context_of(TRACEPARENT))
    try:
        return (await trainer.stub.ActivatePolicy(request)).policy
    finally:
        detach(token)


class Watcher:
    """A stream of a channel; heartbeats are counted and left out."""

    def __init__(self, trainer: Trainer, channel: str = "stable") -> None:
        self.heartbeats = 0
        self._call = trainer.stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel=channel))

    async def next(self) -> training_pb2.WatchPoliciesResponse:
        async with asyncio.timeout(5):
            while True:
                message = await self._call.read()
                assert message is not grpc.aio.EOF
                if message.HasField("policy"):
                    return message
                self.heartbeats += 1

    async def silence(self, seconds: float) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.next()

    async def aclose(self) -> None:
        self._call.cancel()
