"""The service as a process: ready, killed in the middle of a write, drained."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

import grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_runtime.channels import open_channel
from sid_assigner.settings import SidAssignerSettings

from tests.sid_assigner.suite import make_ads, process


async def test_killed_and_started_again_it_holds_whole_batches_and_drains(
    settings: SidAssignerSettings, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        requests = [
            sid_pb2.BatchCreateAdSidsRequest(request_id=f"batch-{number}", ads=make_ads(50, first=50 * number))
            for number in range(8)
        ]
        async with process(settings, port) as first:
            await stub.ActivateCodebook(sid_pb2.ActivateCodebookRequest(codebook_id="small"))
            told = await stub.BatchCreateAdSids(requests[0])
            sending = [asyncio.ensure_future(_outcome(stub, request)) for request in requests[1:]]
            await asyncio.sleep(0.05)
            first.kill()
            await asyncio.gather(*sending)
        async with process(settings, port) as second:
            # The channel may still be waiting before it tries the server again, which it lost.
            stream = stub.ReadCatalog(sid_pb2.ReadCatalogRequest(until_current=True), wait_for_ready=True)
            known = {entry.ad_id async for part in stream for entry in part.entries}
            for request in requests:
                held = sum(ad.ad_id in known for ad in request.ads)
                assert held in (0, len(request.ads))
            # A client that never got its answer sends the batch again.
            answers = [await stub.BatchCreateAdSids(request, timeout=10) for request in requests]
            assert answers[0] == told
            assert len({tuple(ad_sid.sid.codes) for answer in answers for ad_sid in answer.ad_sids}) == 400

            watching = stub.ReadCatalog(sid_pb2.ReadCatalogRequest(cursor=400))
            await watching.read()
            second.send_signal(signal.SIGTERM)
            code = None
            try:
                while await watching.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                code = error.code()
            assert code == grpc.StatusCode.UNAVAILABLE
            assert await asyncio.wait_for(second.wait(), 20) == 0


async def _outcome(stub: sid_pb2_grpc.SidServiceAsyncStub, request: sid_pb2.BatchCreateAdSidsRequest) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        await stub.BatchCreateAdSids(request, timeout=0.5)
