"""A reward logger over real gRPC on a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from gr4ad.reward.v1 import reward_pb2_grpc
from gr4ad_runtime.app import Lifecycle, bind, drain, make_server
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.db import Database
from reward_logger.__main__ import build
from reward_logger.models import SCHEMA
from reward_logger.settings import RewardLoggerSettings


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database, for a look past the service."""
    database = Database(database_url, SCHEMA)
    await database.migrate("reward_logger")
    yield database
    await database.close()


@pytest.fixture
async def address(database_url: str) -> AsyncIterator[str]:
    """Address of a service that streams three lists a message, so that a few lists make many."""
    settings = RewardLoggerSettings(port=0, database_url=database_url, read_chunk=3)
    lifecycle = Lifecycle()
    server = make_server(settings, lifecycle)
    port = bind(server, settings)
    await build(server, lifecycle, settings)
    await server.start()
    yield f"127.0.0.1:{port}"
    await drain(server, lifecycle, 0.0)


@pytest.fixture
async def stub(address: str) -> AsyncIterator[reward_pb2_grpc.RewardServiceAsyncStub]:
    """A client of the service."""
    async with open_channel(address) as channel:
        yield reward_pb2_grpc.RewardServiceStub(channel)
