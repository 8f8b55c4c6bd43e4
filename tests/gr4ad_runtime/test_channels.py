from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.channels import DEFAULT_DEADLINE_S, open_channel, reconnect
from gr4ad_runtime.settings import ServiceSettings

from tests.gr4ad_runtime.sample_service import SampleServicer, serving


def settings(port: int) -> ServiceSettings:
    return ServiceSettings(port=port)


async def test_a_call_without_a_deadline_gets_one() -> None:
    servicer = SampleServicer()
    async with serving(servicer) as (address, _), open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        await stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id="a"))
        assert servicer.time_remaining == pytest.approx(DEFAULT_DEADLINE_S, abs=2.0)
        await stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id="a"), timeout=4.0)
        assert servicer.time_remaining == pytest.approx(4.0, abs=1.0)


async def test_a_call_outlives_a_restart_of_its_server(free_port: Callable[[], int]) -> None:
    port = free_port()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        async with serving(SampleServicer(), settings(port)):
            await stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id="a"))

        async def later() -> None:
            await asyncio.sleep(0.15)
            async with serving(SampleServicer(), settings(port)):
                await asyncio.sleep(1.5)

        restart = asyncio.ensure_future(later())
        answer = await stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id="b"), wait_for_ready=True)
        assert answer.training_run.run_id == "b"
        restart.cancel()
        await asyncio.gather(restart, return_exceptions=True)


async def test_a_stream_is_resumed_over_a_restart(free_port: Callable[[], int]) -> None:
    port, opened, seen = free_port(), 0, []
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)

        def open_stream() -> AsyncIterator[training_pb2.WatchPoliciesResponse]:
            nonlocal opened
            opened += 1
            return stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel="sleep-60000"))

        async def follow() -> None:
            async for message in reconnect(open_stream, name="policies", first_wait_s=0.05, longest_wait_s=0.2):
                seen.append(message.traceparent)

        following = asyncio.ensure_future(follow())
        for expected in (1, 2):
            async with serving(SampleServicer(), settings(port)):
                async with asyncio.timeout(10.0):
                    while len(seen) < expected:
                        await asyncio.sleep(0.02)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert seen == ["1-first", "1-first"]
    assert opened >= 2


async def test_a_final_status_ends_the_reading() -> None:
    async with serving(SampleServicer()) as (address, _), open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.WatchPoliciesRequest(channel="Wrong Name")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in reconnect(lambda: stub.WatchPolicies(request), name="policies"):
                pass
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_silent_stream_is_given_up() -> None:
    servicer = SampleServicer()
    async with serving(servicer) as (address, _), open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.WatchPoliciesRequest(channel="sleep-60000")
        seen = []
        async for message in reconnect(
            lambda: stub.WatchPolicies(request), name="policies", silence_s=0.1, first_wait_s=0.01
        ):
            seen.append(message.traceparent)
            if len(seen) == 3:
                break
    assert seen == ["1-first", "2-first", "3-first"]


async def test_waits_grow_and_start_over_after_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("gr4ad_runtime.channels.asyncio.sleep", sleep)
    monkeypatch.setattr("gr4ad_runtime.back_off.random.uniform", lambda low, high: high)
    scripts = [[], [], [], ["message"], [], []]

    async def stream() -> AsyncIterator[str]:
        for message in scripts.pop(0) if scripts else ["end"]:
            yield message

    async for message in reconnect(stream, name="x", first_wait_s=1.0, longest_wait_s=3.0):
        if message == "end":
            break
    assert waits == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]


async def test_a_loop_of_attempts_ends_when_told_to_though_a_failing_call_hides_it() -> None:
    attempts = 0

    async def fail_when_cancelled() -> None:
        nonlocal attempts
        attempts += 1
        with contextlib.suppress(asyncio.CancelledError):  # a call that had failed already, as gRPC's do
            await asyncio.sleep(60)
        raise ConnectionError

    async def insist() -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                await fail_when_cancelled()
            await back_off(0.01)

    insisting = asyncio.ensure_future(insist())
    await asyncio.sleep(0)
    insisting.cancel()
    done, _ = await asyncio.wait([insisting], timeout=5.0)
    assert done
    assert insisting.cancelled()
    assert attempts == 1


async def test_waits_between_attempts_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("gr4ad_runtime.back_off.asyncio.sleep", sleep)
    for _ in range(50):
        await back_off(2.0)
    assert 1.0 <= min(waits) < 1.3 < 1.7 < max(waits) <= 2.0
