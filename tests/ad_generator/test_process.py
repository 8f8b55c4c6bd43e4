"""The generator as a process of its own: KServe around it, its ports, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from ad_generator.kserve_server import GeneratorServer, RestServer
from gr4ad.generation.v1 import generation_pb2_grpc
from gr4ad_runtime.errors import AddressInUseError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.ad_generator.neighbours import ACTIVE, PAUSED, Neighbour
from tests.ad_generator.policies import publish
from tests.ad_generator.suite import ALL_SIDS, Neighbours, request
from tests.plain_channel import plain_channel


@asynccontextmanager
async def process(neighbours: Neighbours, port: int, **variables: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `python -m ad_generator` among the neighbours; killed at the end if it is still there."""
    settings = neighbours.settings(port=port)
    names = ("port", "artifact_store", "policy_cache", *(n for n in type(settings).model_fields if "_address" in n))
    environment = {
        **os.environ,
        **{f"GR4AD_{name.upper()}": str(getattr(settings, name)) for name in names},
        "GR4AD_BEAM_WIDTHS": "3-6-10",
        **{f"GR4AD_{name.upper()}": str(value) for name, value in variables.items()},
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ad_generator", env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def serving(port: int) -> None:
    """Wait until the process says that it takes traffic."""
    async with plain_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(60):
            while True:
                try:
                    told = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                    if told.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.aio.AioRpcError:
                    pass
                await asyncio.sleep(0.05)


def http(url: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, Any]:
    """Make an HTTP call; returns status and content."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(call, timeout=10) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


async def test_kserve_serves_both_sides_and_a_sigterm_drains(
    neighbours: Neighbours, free_port: Callable[[], int]
) -> None:
    neighbours.catalogue.fill(ALL_SIDS)
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    port, rest_port = free_port(), free_port()
    # A batch waits for company long enough for the signal to come first.
    async with process(neighbours, port, rest_port=rest_port, max_batch_size=64, max_batch_wait_us=600_000) as child:
        await serving(port)
        url = f"http://127.0.0.1:{rest_port}/v2/models/gr4ad"
        assert await asyncio.to_thread(http, f"{url}/ready") == (200, {"name": "gr4ad", "ready": True})
        inputs = [
            {"name": "history_ad_ids", "datatype": "BYTES", "shape": [1], "data": ["ad-0-1-2"]},
            {"name": "history_behaviors", "datatype": "INT32", "shape": [1], "data": [2]},
            {"name": "candidate_count", "datatype": "INT32", "shape": [1], "data": [3]},
        ]
        bucket = {"Gr4ad-Bucket": "42"}
        status, answer = await asyncio.to_thread(http, f"{url}/infer", {"id": "rest", "inputs": inputs}, **bucket)
        assert (status, len(answer["outputs"][0]["data"])) == (200, 3)
        bucket = {"Gr4ad-Bucket": "all"}
        status, answer = await asyncio.to_thread(http, f"{url}/infer", {"inputs": inputs}, **bucket)
        assert status == 400
        assert "gr4ad-bucket: all" in answer["error"]
        inputs[2]["data"] = [0]
        status, answer = await asyncio.to_thread(http, f"{url}/infer", {"inputs": inputs})
        assert status == 400
        assert "candidate_count" in answer["error"]

        async with plain_channel(f"127.0.0.1:{port}") as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            asked = [request(["ad-0-1-2"]) for _ in range(20)]
            calls = [asyncio.ensure_future(stub.GenerateAds(one, timeout=10)) for one in asked]
            await asyncio.sleep(0.2)
            assert not any(call.done() for call in calls)
            child.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*calls)
        assert all(len(answer.candidates) == 5 for answer in answers)
        output, _ = await asyncio.wait_for(child.communicate(), 15)
        assert child.returncode == 0
    lists = neighbours.rewards.lists
    assert {one.request_id for one in asked} <= set(lists)
    assert (lists["rest"].bucket, lists["rest"].channel) == (42, "stable")
    assert lists["rest"].latency_us > 0
    lines = [json.loads(line) for line in output.decode().splitlines()]  # nothing but JSON, KServe included
    events = [line["event"] for line in lines]
    assert events.index("serving") < events.index("draining") < events.index("stopped")
    assert all(line["service"] == "ad_generator" for line in lines)


async def test_kserves_rest_port_takes_bid_requests(neighbours: Neighbours, free_port: Callable[[], int]) -> None:
    for number, sid in enumerate(ALL_SIDS):
        neighbours.catalogue.put(f"ad{number}", sid, PAUSED if number % 2 else ACTIVE, advertiser_id="shop")
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    port, rest_port = free_port(), free_port()
    asked: dict[str, Any] = {"id": "auction", "imp": [{"id": "1", "banner": {}}], "tmax": 5000}
    asked["user"] = {"ext": {"gr4ad": {"events": [{"ad_id": "ad7", "behavior": "click"}]}}}
    url = f"http://127.0.0.1:{rest_port}/openrtb2/bid"
    async with process(neighbours, port, rest_port=rest_port, currency="EUR") as child:
        await serving(port)
        status, answer = await asyncio.to_thread(http, url, asked)
        assert (status, answer["id"], answer["cur"]) == (200, "auction", "EUR")
        (seat,) = answer["seatbid"]
        assert seat["seat"] == "shop"
        assert len(seat["bid"]) == 3
        assert all(int(bid["adid"].removeprefix("ad")) % 2 == 0 for bid in seat["bid"])
        assert await asyncio.to_thread(http, url, {**asked, "cur": ["USD"]}) == (204, None)
        status, wrong = await asyncio.to_thread(http, url, {**asked, "imp": []})
        assert status == 400
        assert wrong["error"].startswith("imp: []: ")
        assert (await asyncio.to_thread(http, url))[0] == 405  # GET
        child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.communicate(), 15)
        assert child.returncode == 0
    assert set(neighbours.rewards.lists) == {answer["bidid"]}


async def test_a_port_in_use_is_named_with_its_remedy(neighbours: Neighbours) -> None:
    taken = Neighbour()
    await taken.start()
    async with process(neighbours, taken.port) as child:
        output = (await asyncio.wait_for(child.communicate(), 60))[0].decode()
    await taken.stop()
    assert f"127.0.0.1:{taken.port}" in output
    assert "GR4AD_PORT" in output
    assert child.returncode == 2


def test_a_rest_port_in_use_is_named_with_its_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = GeneratorServer("127.0.0.1", 0)
        with pytest.raises(AddressInUseError, match=f"127.0.0.1:{port}.*GR4AD_REST_PORT"):
            RestServer(server.dataplane, server.model_repository_extension, "127.0.0.1", port)
