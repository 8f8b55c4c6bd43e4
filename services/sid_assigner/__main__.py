"""Runs the SID assigner: `python -m sid_assigner`."""

from __future__ import annotations

import grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_runtime.app import Lifecycle, run_service
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import Gr4adError
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.readiness import follow_readiness
from gr4ad_runtime.settings import read_settings

from sid_assigner.batch_creator import BatchCreator
from sid_assigner.codebook_registry import CodebookRegistry
from sid_assigner.feed_reader import FeedReader
from sid_assigner.feed_watch import FeedWatch
from sid_assigner.models import SCHEMA
from sid_assigner.servicer import SidServicer
from sid_assigner.settings import SidAssignerSettings

SERVICE_NAME = sid_pb2.DESCRIPTOR.services_by_name["SidService"].full_name
log = get_logger(__name__)


async def build(server: grpc.aio.Server, lifecycle: Lifecycle, settings: SidAssignerSettings) -> None:
    """Bring the schema up to date, register the service and become ready as long as the database answers."""
    database = Database(settings.database_url, SCHEMA)
    lifecycle.on_stop(database.close)
    await database.migrate("sid_assigner")
    registry = CodebookRegistry(ArtifactStore(settings.artifact_store))
    watch = FeedWatch(database, settings.catalog_poll_seconds)
    reader = FeedReader(
        database,
        registry,
        watch,
        chunk=settings.catalog_chunk,
        heartbeat_seconds=settings.catalog_heartbeat_seconds,
        concurrent_snapshots=settings.concurrent_snapshots,
    )
    creator = BatchCreator(
        database,
        registry,
        concurrent_batches=settings.concurrent_batches,
        waiting_batches=settings.waiting_batches,
    )
    servicer = SidServicer(database, registry, creator, reader)
    sid_pb2_grpc.add_SidServiceServicer_to_server(servicer, server)
    lifecycle.background(watch.follow(), "catalogue feed")
    lifecycle.background(_load_codebooks(database, registry), "codebooks")
    lifecycle.background(follow_readiness(lifecycle, database.ping), "readiness")


async def _load_codebooks(database: Database, registry: CodebookRegistry) -> None:
    """Load the registered codebooks before the first batch needs them; look-ups and the feed do without."""
    try:
        async with database.session() as session:
            registered = await registry.list(session)
        for codebook in registered:
            await registry.load(codebook)
    except Gr4adError as error:
        log.error("codebook not loaded, the next batch tries again", error=error.message)


def main() -> None:
    """Read the settings and serve until told to stop."""
    settings = read_settings(SidAssignerSettings)

    async def build_service(server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        await build(server, lifecycle, settings)

    run_service("sid_assigner", settings, build_service, service_names=(SERVICE_NAME,))


if __name__ == "__main__":
    main()
