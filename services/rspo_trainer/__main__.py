"""Entry point of the trainer: `python -m rspo_trainer`."""

from __future__ import annotations

import grpc
import torch
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime.app import Lifecycle, run_service
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import InvalidArgumentError
from gr4ad_runtime.readiness import follow_readiness
from gr4ad_runtime.settings import read_settings

from rspo_trainer.activation_watch import ActivationWatch
from rspo_trainer.models import SCHEMA
from rspo_trainer.online_trainer import OnlineTrainer
from rspo_trainer.policy_maker import PolicyMaker
from rspo_trainer.policy_store import PolicyStore
from rspo_trainer.run_queue import RunQueue
from rspo_trainer.run_store import RunStore
from rspo_trainer.servicer import TrainingServicer
from rspo_trainer.settings import RspoTrainerSettings
from rspo_trainer.training_thread import TrainingThread
from rspo_trainer.worker import Worker

SERVICE_NAME = training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name


async def build(server: grpc.aio.Server, lifecycle: Lifecycle, settings: RspoTrainerSettings) -> None:
    """Bring the schema up to date, start the worker, register the servicer and become ready while the database answers.

    Raises:
        InvalidArgumentError: The device of the settings is not usable.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("device", "cuda", "no accelerator is usable here: set GR4AD_DEVICE=cpu")
    database = Database(settings.database_url, SCHEMA)
    lifecycle.on_stop(database.close)
    await database.migrate("rspo_trainer")
    policies = PolicyStore(database)
    watch = ActivationWatch(database, policies, settings.watch_heartbeat_seconds)
    artifacts, thread, queue = ArtifactStore(settings.artifact_store), TrainingThread(), RunQueue(database)
    maker = PolicyMaker(settings, artifacts, thread)
    online = OnlineTrainer(settings, artifacts, thread, queue, policies)
    worker = Worker(queue, maker, online, settings.progress_seconds)
    lifecycle.background(watch.listen(), "activations")
    lifecycle.background(worker.work(), "training runs")
    servicer = TrainingServicer(RunStore(database), policies, watch, worker)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    lifecycle.background(follow_readiness(lifecycle, database.ping), "readiness")


def main() -> None:
    """Run the service until it is told to stop."""
    settings = read_settings(RspoTrainerSettings)
    run_service(
        "rspo_trainer",
        settings,
        lambda server, lifecycle: build(server, lifecycle, settings),
        service_names=[SERVICE_NAME],
    )


if __name__ == "__main__":
    main()
