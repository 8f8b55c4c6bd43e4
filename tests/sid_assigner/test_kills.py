"""Servers and the database die at random while ads are written and read: what was told stays, once and whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_core.sid.codebook import Codebook
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import UnavailableError
from gr4ad_tools.embedded_postgres import EmbeddedPostgres
from sid_assigner.models import SCHEMA
from sid_assigner.settings import SidAssignerSettings
from sqlalchemy import text

from tests.sid_assigner.suite import ExitedError, make_ads, process

WRITERS, BATCHES, SIZE = 8, 64, 25
KILLS = ("database", "server", "database", "server")
BETWEEN_KILLS_S = (0.1, 0.6)
CALL_TIMEOUT_S = 5.0
LONGEST_S = 100.0
DEAD_ENDS = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.DATA_LOSS})


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this test alone, whose commits survive a crash: that of the other tests neither may nor would."""
    with EmbeddedPostgres(tmp_path / "postgres", ephemeral=True) as server:
        yield server


class Servers:
    """Two SID assigners that are started again when they die, as a supervisor would."""

    def __init__(self, settings: SidAssignerSettings, ports: list[int]) -> None:
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self._settings = settings
        self._ports = ports
        self._running: dict[int, asyncio.subprocess.Process] = {}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            tasks = [asyncio.ensure_future(self._keep_up(port)) for port in self._ports]
            stack.push_async_callback(asyncio.gather, *tasks, return_exceptions=True)
            for task in tasks:
                stack.callback(task.cancel)
            async with asyncio.timeout(60):
                while len(self._running) < len(self._ports):
                    await asyncio.sleep(0.05)
            yield

    async def _keep_up(self, port: int) -> None:
        while True:
            with contextlib.suppress(ExitedError):  # as it does where the database dies while it starts
                async with process(self._settings, port) as started:
                    self._running[port] = started
                    await started.wait()
            await back_off(0.1)

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._running[self._ports[number]].kill()


async def crash(database: Database, chance: random.Random) -> None:
    """Kill one of the database's own processes: all connections end, and it recovers from its log."""
    others = text("SELECT pid FROM pg_stat_activity WHERE application_name = 'gr4ad-sid' AND pid <> pg_backend_pid()")
    pids: list[int] = []
    while not pids:
        with contextlib.suppress(UnavailableError):  # it recovers from the crash before
            async with database.session() as session:
                pids = list(await session.scalars(others))
        await back_off(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(pids), signal.SIGKILL)


@pytest.mark.parametrize("seed", [0])
async def test_nothing_acknowledged_is_lost_moved_shared_or_halved(
    seed: int,
    own_postgres: EmbeddedPostgres,
    artifact_store_url: str,
    codebook_store: tuple[Path, Mapping[str, Codebook]],
    free_port: Callable[[], int],
) -> None:
    chance = random.Random(seed)
    shutil.copytree(codebook_store[0], artifact_store_url, dirs_exist_ok=True)
    settings = SidAssignerSettings(
        port=0, database_url=own_postgres.create_database("kills"), artifact_store=artifact_store_url
    )
    database = Database(settings.database_url, SCHEMA)
    servers = Servers(settings, [free_port(), free_port()])
    requests = [
        sid_pb2.BatchCreateAdSidsRequest(request_id=f"batch-{n}", ads=make_ads(SIZE, first=SIZE * n))
        for n in range(BATCHES)
    ]
    told: dict[str, tuple[int, ...]] = {}
    retried = reopened = 0
    written = asyncio.Event()

    async def create(stubs: list[sid_pb2_grpc.SidServiceAsyncStub], request: sid_pb2.BatchCreateAdSidsRequest) -> int:
        nonlocal retried
        while True:
            try:
                answer = await chance.choice(stubs).BatchCreateAdSids(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() in DEAD_ENDS:
                    raise
                retried += 1
                await back_off(0.05)
                continue
            assert [ad_sid.ad_id for ad_sid in answer.ad_sids] == [ad.ad_id for ad in request.ads]
            for ad_sid in answer.ad_sids:
                codes = tuple(ad_sid.sid.codes)
                assert told.setdefault(ad_sid.ad_id, codes) == codes, "a repeated batch got other SIDs"
            return answer.catalog_cursor

    async def write(
        stubs: list[sid_pb2_grpc.SidServiceAsyncStub], queue: Iterator[sid_pb2.BatchCreateAdSidsRequest]
    ) -> None:
        for request in queue:
            await create(stubs, request)
            if chance.random() < 0.3:  # a client that lost the answer
                await create(stubs, request)
            await asyncio.sleep(0.05)

    async def kill() -> None:
        for victim in KILLS:
            await asyncio.sleep(chance.uniform(*BETWEEN_KILLS_S))
            if victim == "database":
                await crash(database, chance)
            else:
                servers.kill(chance.randrange(len(servers.addresses)))

    async def read(stubs: list[sid_pb2_grpc.SidServiceAsyncStub], cursor: int) -> list[str]:
        """Follow the feed on connections that break at random, until all is written and read."""
        nonlocal reopened
        seen: list[str] = []
        while not (written.is_set() and cursor == SIZE * BATCHES):
            stream = chance.choice(stubs).ReadCatalog(sid_pb2.ReadCatalogRequest(cursor=cursor), timeout=CALL_TIMEOUT_S)
            try:
                async with asyncio.timeout(chance.uniform(0.02, 0.4)):
                    async for part in stream:
                        seen += [entry.ad_id for entry in part.entries]
                        cursor = part.cursor
            except (TimeoutError, grpc.aio.AioRpcError):
                reopened += 1
                stream.cancel()
                await back_off(0.01)
        return seen

    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        await stack.enter_async_context(servers.run())
        stubs = [
            sid_pb2_grpc.SidServiceStub(await stack.enter_async_context(open_channel(address)))
            for address in servers.addresses
        ]
        await stubs[0].ActivateCodebook(sid_pb2.ActivateCodebookRequest(codebook_id="small"), timeout=30)
        first = await create(stubs, requests[0])
        queue = iter(requests[1:])
        async with asyncio.timeout(LONGEST_S), asyncio.TaskGroup() as readers:
            reading = readers.create_task(read(stubs, first))
            async with asyncio.TaskGroup() as others:
                others.create_task(kill())
                for _ in range(WRITERS):
                    others.create_task(write(stubs, queue))
            written.set()
        seen = reading.result()

        async with database.session() as session:
            stored = {
                row.ad_id: (*row.semantic_codes, row.business_code)
                for row in await session.execute(text("SELECT ad_id, semantic_codes, business_code FROM sid.ad_sid"))
            }
            changes = (await session.execute(text("SELECT seq, ad_id FROM sid.catalog_change ORDER BY seq"))).all()
            ads = set(await session.scalars(text("SELECT ad_id FROM sid.ad")))

    assert retried, "no call met a kill"
    assert reopened > len(KILLS)
    assert stored == told
    assert len(set(stored.values())) == len(stored) == SIZE * BATCHES
    assert ads == stored.keys()
    assert [change.seq for change in changes] == list(range(1, SIZE * BATCHES + 1))
    assert seen == [change.ad_id for change in changes if change.seq > first]
