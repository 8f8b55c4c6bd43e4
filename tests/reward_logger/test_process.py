"""The reward logger as a process: killed between retries it neither loses nor doubles anything, and it drains."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.channels import open_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.oracles.reward_messages import feedback, impression, served_list

SERVICE = "gr4ad.reward.v1.RewardService"
BATCHES, BATCH = 40, 5


@asynccontextmanager
async def process(database_url: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the service and wait until it is ready; it is killed at the end if it still runs."""
    environment = os.environ | {"GR4AD_PORT": str(port), "GR4AD_DATABASE_URL": database_url, "GR4AD_LOG_LEVEL": "ERROR"}
    started = await asyncio.create_subprocess_exec(sys.executable, "-m", "reward_logger", env=environment)
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            async with asyncio.timeout(20):
                while True:
                    assert started.returncode is None
                    try:
                        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.05)
                        continue
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def send(port: int, batch: int) -> None:
    """Send a batch of lists, impressions and feedback until each was acknowledged."""
    numbers = range(batch * BATCH, (batch + 1) * BATCH)
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        calls: list[Callable[[], grpc.aio.UnaryUnaryCall]] = [
            lambda: stub.BatchCreateServedLists(
                reward_pb2.BatchCreateServedListsRequest(served_lists=map(served_list, numbers)), timeout=2
            ),
            lambda: stub.BatchCreateImpressions(
                reward_pb2.BatchCreateImpressionsRequest(impressions=[impression(f"e{n}", n, "a") for n in numbers]),
                timeout=2,
            ),
            lambda: stub.BatchCreateFeedback(
                reward_pb2.BatchCreateFeedbackRequest(feedback=[feedback(f"e{n}", n, "a", revenue=3) for n in numbers]),
                timeout=2,
            ),
        ]
        for call in calls:
            while True:
                try:
                    answer = await call()
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.02)
            assert answer.stored_count + answer.duplicate_count == BATCH


async def test_killed_between_retries_it_loses_and_doubles_nothing(
    database_url: str, free_port: Callable[[], int]
) -> None:
    port, total = free_port(), BATCHES * BATCH
    async with process(database_url, port) as service:
        senders = [asyncio.create_task(send(port, batch)) for batch in range(BATCHES)]
        await asyncio.sleep(0.15)
        service.kill()
        await service.wait()
    assert not all(sender.done() for sender in senders)  # the kill came in the middle
    async with process(database_url, port) as service:
        await asyncio.gather(*senders)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            summary = await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest())
            read = [
                rewarded
                async for part in stub.ReadRewardedLists(reward_pb2.ReadRewardedListsRequest())
                for rewarded in part.rewarded_lists
            ]
        service.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(service.wait(), 5) == 0
    assert summary == reward_pb2.GetRewardSummaryResponse(
        served_lists=total, impressions=total, clicks=total, revenue_micros=3 * total, last_cursor=total
    )
    assert sorted(r.served_list.request_id for r in read) == sorted(f"request-{n}" for n in range(total))
    assert all([(o.ad_id, o.impression_count, o.click_count) for o in r.outcomes] == [("a", 1, 1)] for r in read)
