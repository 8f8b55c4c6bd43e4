"""Entry point of the reward logger: `python -m reward_logger`."""

from __future__ import annotations

import grpc
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.app import Lifecycle, run_service
from gr4ad_runtime.db import Database

from reward_logger.models import SCHEMA
from reward_logger.servicer import RewardServicer
from reward_logger.settings import RewardLoggerSettings

SERVICE_NAME = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name


def main() -> None:
    """Run the service until it is told to stop."""
    settings = RewardLoggerSettings()

    async def build(server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        database = Database(settings.database_url, SCHEMA)
        lifecycle.on_stop(database.close)
        await database.migrate("reward_logger")
        servicer = RewardServicer(database, settings.read_chunk)
        reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server)
        lifecycle.set_ready(True)

    run_service("reward_logger", settings, build, service_names=[SERVICE_NAME])


if __name__ == "__main__":
    main()
