"""What tests of several packages share: one PostgreSQL server, a fresh database per test, a folder for artifacts."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gr4ad_tools.embedded_postgres import EmbeddedPostgres
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

_numbers = itertools.count(1)


def _fastest_folder() -> str | None:
    """Return a folder in memory, where a fresh database takes 20 ms and not 500; None where there is none to spare."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**31
    return str(memory) if roomy else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A server for the whole run; gone with it, even when the run is killed."""
    folder = Path(tempfile.mkdtemp(prefix="gr4ad-tests-", dir=_fastest_folder())) / "pgdata"
    with EmbeddedPostgres(folder, durable=False, ephemeral=True) as server:
        yield server
    folder.parent.rmdir()


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """URL of an empty database of the test's own."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def artifact_store_url(tmp_path: Path) -> str:
    """An empty artifact store of the test's own."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Finds a loopback port that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


@pytest.fixture(scope="session")
def _span_exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A process has one provider for good: every test that looks at spans shares this one.
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(_span_exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    """The spans that this process finished since the test began: `spans.get_finished_spans()`."""
    _span_exporter.clear()
    return _span_exporter
