"""A running SID assigner per test; its codebooks are fitted once."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from gr4ad_core.sid.codebook import Codebook
from gr4ad_runtime.db import Database
from sid_assigner.models import SCHEMA
from sid_assigner.settings import SidAssignerSettings

from tests.sid_assigner.small_codebooks import publish
from tests.sid_assigner.suite import Suite, run_suite


@pytest.fixture(scope="session")
def codebook_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Codebook]]:
    """An artifact store with small codebooks, and with two that cannot be used; and the good ones by their ids."""
    root = tmp_path_factory.mktemp("artifacts")
    codebooks = publish(root)
    damaged = shutil.copytree(root / "codebooks" / "small", root / "codebooks" / "damaged")
    content = bytearray((damaged / "codebook.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "codebook.npz").write_bytes(bytes(content))
    shutil.copytree(root / "codebooks" / "small", root / "codebooks" / "mislabelled")
    return root, codebooks


@pytest.fixture
def settings(
    database_url: str, artifact_store_url: str, codebook_store: tuple[Path, Mapping[str, Codebook]]
) -> SidAssignerSettings:
    """Settings of a service with short chunks and heartbeats, so that a test sees many of both."""
    shutil.copytree(codebook_store[0], artifact_store_url, dirs_exist_ok=True)
    return SidAssignerSettings(
        port=0,
        database_url=database_url,
        artifact_store=artifact_store_url,
        log_level="ERROR",
        catalog_chunk=25,
        catalog_heartbeat_seconds=0.2,
    )


@pytest.fixture
async def empty_suite(
    settings: SidAssignerSettings, codebook_store: tuple[Path, Mapping[str, Codebook]]
) -> AsyncIterator[Suite]:
    """A service without any codebook."""
    async with run_suite(settings, codebook_store[1]) as suite:
        yield suite


@pytest.fixture
async def suite(empty_suite: Suite) -> Suite:
    """A service whose active codebook is `small`."""
    await empty_suite.activate("small")
    return empty_suite


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database without a service."""
    database = Database(database_url, SCHEMA)
    await database.migrate("sid_assigner")
    yield database
    await database.close()
