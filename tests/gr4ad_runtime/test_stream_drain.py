from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from gr4ad.training.v1 import training_pb2, training_pb2_grpc

from tests.gr4ad_runtime.sample_service import SampleServicer, serving
from tests.plain_channel import plain_channel

WATCH = training_pb2.WatchPoliciesRequest(channel="stable")


class Flood(SampleServicer):
    """Streams without a pause, so that a stop comes while gRPC writes."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    async def WatchPolicies(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield training_pb2.WatchPoliciesResponse(traceparent="x" * 50)
        finally:
            self.closed += 1


class Quiet(Flood):
    """Streams one message, then waits for ever."""

    async def WatchPolicies(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            yield training_pb2.WatchPoliciesResponse()
            await asyncio.sleep(60.0)
        finally:
            self.closed += 1


@pytest.mark.parametrize("kind", [Flood, Quiet])
async def test_every_reader_hears_of_the_stop(kind: type[Flood]) -> None:
    servicer = kind()
    async with serving(servicer) as (address, lifecycle), plain_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        started = [asyncio.Event() for _ in range(8)]

        async def read(event: asyncio.Event) -> grpc.StatusCode:
            stream = stub.WatchPolicies(WATCH)
            try:
                async for _ in stream:
                    event.set()
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        readers = [asyncio.create_task(read(event)) for event in started]
        for event in started:
            await event.wait()
        lifecycle.streams.end_streams()
        async with asyncio.timeout(10.0):
            codes = await asyncio.gather(*readers)
        assert codes == [grpc.StatusCode.UNAVAILABLE] * 8
        with pytest.raises(grpc.aio.AioRpcError) as late:
            async for _ in stub.WatchPolicies(WATCH):
                pass
        assert late.value.code() is grpc.StatusCode.UNAVAILABLE
        for _ in range(100):
            if servicer.closed == 8:
                break
            await asyncio.sleep(0.02)
    assert servicer.closed == 8


async def test_a_reader_that_leaves_ends_its_stream_only() -> None:
    servicer = Quiet()
    async with serving(servicer) as (address, _), plain_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        streams = [stub.WatchPolicies(WATCH) for _ in range(2)]
        for stream in streams:
            await stream.read()
        streams[0].cancel()
        async with asyncio.timeout(5.0):
            while servicer.closed < 1:
                await asyncio.sleep(0.02)
        assert not streams[1].done()
        assert servicer.closed == 1
