"""A generator that answers from a list the test holds: real gRPC on loopback, no model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.type.v1 import type_pb2

from tests.plain_channel import plain_channel

Answer = Callable[[generation_pb2.GenerateAdsRequest], list[tuple[str, float]]]


class Generator(generation_pb2_grpc.GenerationServiceServicer):
    """Returns what `answer` says, as (ad, log-probability); `fail` names requests to refuse."""

    def __init__(self, answer: Answer, fail: Callable[[str], bool] = lambda _: False, delay_s: float = 0.0) -> None:
        self.answer = answer
        self.fail = fail
        self.delay_s = delay_s
        self.under_way = self.most_under_way = 0
        self.request_ids: list[str] = []

    async def GenerateAds(
        self, request: generation_pb2.GenerateAdsRequest, context: grpc.aio.ServicerContext
    ) -> generation_pb2.GenerateAdsResponse:
        self.request_ids.append(request.request_id)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(self.delay_s)
        self.under_way -= 1
        if self.fail(request.request_id):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return generation_pb2.GenerateAdsResponse(
            candidates=[type_pb2.ScoredAd(ad_id=ad, log_prob=log_prob) for ad, log_prob in self.answer(request)],
            beam_trace=generation_pb2.BeamTrace(widths=[4, 8]),
        )


class Catalogue(sid_pb2_grpc.SidServiceServicer):
    """Keeps what it is given; a change shows in `live` after `delay_s`."""

    def __init__(self, live: set[str], delay_s: float) -> None:
        self.live = live
        self.delay_s = delay_s
        self.created: list[sid_pb2.Ad] = []

    async def BatchCreateAdSids(
        self, request: sid_pb2.BatchCreateAdSidsRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.BatchCreateAdSidsResponse:
        self.created += request.ads
        for ad in request.ads:
            asyncio.get_running_loop().call_later(self.delay_s, self.live.add, ad.ad_id)
        return sid_pb2.BatchCreateAdSidsResponse()

    async def UpdateAd(
        self, request: sid_pb2.UpdateAdRequest, context: grpc.aio.ServicerContext
    ) -> sid_pb2.UpdateAdResponse:
        asyncio.get_running_loop().call_later(self.delay_s, self.live.discard, request.ad_id)
        return sid_pb2.UpdateAdResponse()


@contextlib.asynccontextmanager
async def serving(generator: Generator, catalogue: Catalogue | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """Serve the doubles and yield a channel to them."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(generator, server)
    if catalogue is not None:
        sid_pb2_grpc.add_SidServiceServicer_to_server(catalogue, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with plain_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)
