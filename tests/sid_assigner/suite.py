"""A SID assigner on a real server and a real database, as the tests call it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_core.sid.codebook import Codebook
from gr4ad_runtime.app import Lifecycle, bind, drain, make_server
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.db import Database
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sid_assigner.__main__ import build
from sid_assigner.models import SCHEMA
from sid_assigner.settings import SidAssignerSettings

SERVICE = "gr4ad.sid.v1.SidService"
KINDS = ("lipstick", "mascara", "shampoo", "serum", "perfume", "razor", "soap", "brush")
COLOURS = ("red", "blue", "nude", "gold", "mint", "black")


@dataclass(frozen=True)
class Suite:
    """A running service, a stub of it, and its database for a look past it."""

    stub: sid_pb2_grpc.SidServiceAsyncStub
    database: Database
    settings: SidAssignerSettings
    address: str
    server: grpc.aio.Server
    lifecycle: Lifecycle
    codebooks: Mapping[str, Codebook]

    async def create(self, request_id: str, ads: Sequence[sid_pb2.Ad]) -> sid_pb2.BatchCreateAdSidsResponse:
        """Create a batch of ads."""
        request = sid_pb2.BatchCreateAdSidsRequest(request_id=request_id, ads=ads)
        return await self.stub.BatchCreateAdSids(request)

    async def activate(self, codebook_id: str) -> sid_pb2.Codebook:
        """Activate a codebook."""
        request = sid_pb2.ActivateCodebookRequest(codebook_id=codebook_id)
        return (await self.stub.ActivateCodebook(request)).codebook


@asynccontextmanager
async def run_suite(settings: SidAssignerSettings, codebooks: Mapping[str, Codebook]) -> AsyncIterator[Suite]:
    """Serve on a free port until the block ends."""
    lifecycle = Lifecycle()
    server = make_server(settings, lifecycle)
    address = f"127.0.0.1:{bind(server, settings)}"
    await build(server, lifecycle, settings)
    await server.start()
    database = Database(settings.database_url, SCHEMA)
    try:
        async with open_channel(address) as channel:
            yield Suite(sid_pb2_grpc.SidServiceStub(channel), database, settings, address, server, lifecycle, codebooks)
    finally:
        await database.close()
        await drain(server, lifecycle, 2.0)


class ExitedError(Exception):
    """A process ended before it was ready."""


@asynccontextmanager
async def process(settings: SidAssignerSettings, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `python -m sid_assigner` and wait until it is ready.

    Raises:
        ExitedError: It ended before.
    """
    environment = os.environ | {
        "GR4AD_PORT": str(port),
        "GR4AD_DATABASE_URL": settings.database_url,
        "GR4AD_ARTIFACT_STORE": settings.artifact_store,
        "GR4AD_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }
    started = await asyncio.create_subprocess_exec(sys.executable, "-m", "sid_assigner", env=environment)
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            async with asyncio.timeout(60):
                while True:
                    try:
                        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            break
                    except grpc.aio.AioRpcError:
                        if started.returncode is not None:
                            raise ExitedError(f"exit status {started.returncode}") from None
                    await back_off(0.1)
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


def make_ads(count: int, *, first: int = 0) -> list[sid_pb2.Ad]:
    """Make ads `ad-<first>` and on, of a few kinds and brands."""
    return [
        sid_pb2.Ad(
            ad_id=f"ad-{number}",
            title=f"{COLOURS[number % len(COLOURS)]} {KINDS[number % len(KINDS)]} number {number}",
            brand=f"brand {number % 5}",
            categories=["Beauty", KINDS[number % len(KINDS)]],
            bid_micros=1_000_000 + number,
        )
        for number in range(first, first + count)
    ]
