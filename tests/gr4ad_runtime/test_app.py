from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime.app import Lifecycle, bind, make_server
from gr4ad_runtime.errors import AddressInUseError
from gr4ad_runtime.settings import ServiceSettings
from gr4ad_tools.supervisor import is_live, is_ready
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.gr4ad_runtime.sample_service import SERVICE, SampleServicer, serving
from tests.plain_channel import plain_channel

SAMPLE = Path(__file__).with_name("sample_service.py")
ROOT = SAMPLE.parents[2]


def environment(port: int, **settings: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "GR4AD_PORT": str(port), **settings}


@contextmanager
def process(port: int, told: str = "", **settings: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        [sys.executable, str(SAMPLE), told],
        env=environment(port, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def ends(port: int, told: str) -> tuple[int, list[dict[str, Any]]]:
    with process(port, told) as running:
        output, _ = running.communicate(timeout=30.0)
        return running.returncode, [json.loads(line) for line in output.splitlines() if line.startswith("{")]


async def live(port: int) -> str:
    address = f"127.0.0.1:{port}"
    async with asyncio.timeout(30.0):
        while not await is_live(address):
            await asyncio.sleep(0.05)
    return address


async def test_a_stop_lets_calls_finish_and_ends_streams(free_port: Callable[[], int]) -> None:
    port = free_port()
    with process(port) as running:
        async with plain_channel(await live(port)) as channel:
            assert await is_ready(f"127.0.0.1:{port}")
            stub = training_pb2_grpc.TrainingServiceStub(channel)
            slow = asyncio.ensure_future(
                _collect(stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id="sleep-2000")))
            )
            stream = stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel="sleep-60000"))
            await stream.read()
            running.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stream.read()
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not slow.done()
            assert (await slow).training_run.run_id == "sleep-2000"
        output, _ = await asyncio.to_thread(running.communicate, timeout=10.0)
    assert running.returncode == 0
    events = [json.loads(line)["event"] for line in output.splitlines() if line.startswith("{")]
    assert events[0] == "serving"
    assert events[-2:] == ["call", "stopped"]  # the call whose stream was ended
    assert "closed" in output


async def _collect(call: Any) -> Any:
    return await call


async def test_calls_that_take_too_long_are_cut_at_a_stop(free_port: Callable[[], int]) -> None:
    port = free_port()
    with process(port, GR4AD_DRAIN_SECONDS="0.2") as running:
        async with plain_channel(await live(port)) as channel:
            stub = training_pb2_grpc.TrainingServiceStub(channel)
            slow = asyncio.ensure_future(
                _collect(stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id="sleep-60000")))
            )
            await asyncio.sleep(0.2)
            running.send_signal(signal.SIGINT)
            with pytest.raises(grpc.aio.AioRpcError):
                await slow
        assert await asyncio.to_thread(running.wait, 10.0) == 0


def test_a_port_in_use_is_told_with_its_remedy(free_port: Callable[[], int]) -> None:
    port = free_port()
    with process(port) as first:
        assert first.stdout is not None
        assert '"serving"' in first.stdout.readline()
        code, lines = ends(port, "")
    assert code == 2
    [failed] = [line for line in lines if line["event"] == "start failed"]
    assert f"127.0.0.1:{port}" in failed["error"]
    assert "GR4AD_PORT" in failed["error"]


@pytest.mark.parametrize(
    ("told", "code", "event", "said"),
    [
        ("unavailable", 1, "start failed", "database: down: start it"),
        ("crash", 1, "start failed", "cannot build"),
        ("task", 1, "background task crashed", "the task is broken"),
    ],
)
def test_failures_end_the_process(free_port: Callable[[], int], told: str, code: int, event: str, said: str) -> None:
    found, lines = ends(free_port(), told)
    assert found == code
    assert said in str([line for line in lines if line["event"] == event])


async def test_a_process_is_live_before_it_is_ready(free_port: Callable[[], int]) -> None:
    port = free_port()
    with process(port, "unready"):
        assert not await is_ready(await live(port))


def test_a_start_that_hangs_can_be_stopped(free_port: Callable[[], int]) -> None:
    with process(free_port(), "hang") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "hanging\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(10.0) == 0


async def test_health_follows_readiness() -> None:
    async with serving(SampleServicer(), ready=False) as (address, lifecycle):
        async with plain_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            seen = []
            for ready in (False, True, False, True):
                lifecycle.set_ready(ready)
                await asyncio.sleep(0.02)
                answers = [
                    await stub.Check(health_pb2.HealthCheckRequest(service=service)) for service in ("", SERVICE)
                ]
                assert answers[0].status == answers[1].status
                seen.append(answers[0].status == health_pb2.HealthCheckResponse.SERVING)
            assert seen == [False, True, False, True]
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Check(health_pb2.HealthCheckRequest(service="unknown"))
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("switched_on", [True, False])
async def test_reflection_is_a_choice(switched_on: bool) -> None:
    async with serving(SampleServicer(), ServiceSettings(reflection=switched_on)) as (address, _):
        async with plain_channel(address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            if not switched_on:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call.read()
                assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
                return
            answer = await call.read()
    assert SERVICE in {service.name for service in answer.list_services_response.service}


async def test_hooks_run_last_in_first_out_after_the_tasks() -> None:
    order: list[str] = []
    lifecycle = Lifecycle()

    async def forever() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            order.append("task")

    def hook(name: str) -> Callable[[], Any]:
        async def run() -> None:
            order.append(name)
            if name == "second":
                raise RuntimeError("a hook that fails does not keep the others from running")

        return run

    lifecycle.background(forever(), "forever")
    for name in ("first", "second", "third"):
        lifecycle.on_stop(hook(name))
    await asyncio.sleep(0)
    await lifecycle.close()
    assert order == ["task", "third", "second", "first"]


async def test_two_servers_never_share_a_port() -> None:
    servers = [make_server(ServiceSettings(), Lifecycle()) for _ in range(2)]
    port = bind(servers[0], ServiceSettings())
    with pytest.raises(AddressInUseError, match=f"127.0.0.1:{port}"):
        bind(servers[1], ServiceSettings(port=port))
    for server in servers:
        await server.stop(None)
