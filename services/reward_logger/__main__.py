"""Entry point of the reward logger: `python -m reward_logger`."""

from __future__ import annotations

from datetime import timedelta

import grpc
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.app import Lifecycle, run_service
from gr4ad_runtime.db import Database
from gr4ad_runtime.readiness import follow_readiness
from gr4ad_runtime.settings import read_settings

from reward_logger.models import SCHEMA
from reward_logger.servicer import RewardServicer
from reward_logger.settings import RewardLoggerSettings

SERVICE_NAME = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name


async def build(server: grpc.aio.Server, lifecycle: Lifecycle, settings: RewardLoggerSettings) -> None:
    """Bring the schema up to date, register the servicer and become ready as long as the database answers."""
    database = Database(settings.database_url, SCHEMA)
    lifecycle.on_stop(database.close)
    await database.migrate("reward_logger")
    window = timedelta(seconds=settings.attribution_window_seconds)
    servicer = RewardServicer(database, settings.read_chunk, window)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server)
    lifecycle.background(follow_readiness(lifecycle, database.ping), "readiness")


def main() -> None:
    """Run the service until it is told to stop."""
    settings = read_settings(RewardLoggerSettings)
    run_service(
        "reward_logger",
        settings,
        lambda server, lifecycle: build(server, lifecycle, settings),
        service_names=[SERVICE_NAME],
    )


if __name__ == "__main__":
    main()
