"""A trainer over real gRPC on a database of the test's own, beside a SID service and a reward log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import structlog
from gr4ad.reward.v1 import reward_pb2_grpc
from gr4ad.sid.v1 import sid_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime.app import Lifecycle, bind, drain, make_server
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.db import Database
from gr4ad_runtime.settings import ServiceSettings
from reward_logger.__main__ import build as build_reward_logger
from reward_logger.settings import RewardLoggerSettings
from rspo_trainer.__main__ import build as build_trainer
from rspo_trainer.models import SCHEMA
from rspo_trainer.settings import RspoTrainerSettings

from tests.oracles.chain_folder import write_chain_folder
from tests.oracles.sid_stand_in import SidStandIn, entry

ADS = 40
LEVEL_SIZES = (8, 8, 4)
ENDED = (
    training_pb2.TRAINING_RUN_STATE_SUCCEEDED,
    training_pb2.TRAINING_RUN_STATE_FAILED,
    training_pb2.TRAINING_RUN_STATE_CANCELLED,
)


@dataclass(frozen=True)
class Trainer:
    """A running trainer and what it stands on."""

    stub: training_pb2_grpc.TrainingServiceAsyncStub
    rewards: reward_pb2_grpc.RewardServiceAsyncStub
    sids: SidStandIn
    settings: RspoTrainerSettings
    address: str
    folder: Path

    def request(self, request_id: str = "request", **values: object) -> training_pb2.CreateTrainingRunRequest:
        """A request for a tiny run on the folder, changed by `values`."""
        request = training_pb2.CreateTrainingRunRequest(request_id=request_id, preset="tiny", seed=7)
        request.data_folder.CopyFrom(training_pb2.DataFolderSource(path=str(self.folder), holdout_events=2))
        for name, value in values.items():
            if name in ("data_folder", "reward_log", "online"):
                getattr(request, name).CopyFrom(value)
            else:
                setattr(request, name, value)
        return request

    async def create(self, request_id: str = "request", **values: object) -> training_pb2.TrainingRun:
        """Create a run."""
        return (await self.stub.CreateTrainingRun(self.request(request_id, **values))).training_run

    async def get(self, run_id: str) -> training_pb2.TrainingRun:
        """Look a run up."""
        return (await self.stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id=run_id))).training_run

    async def until(
        self, run_id: str, condition: Callable[[training_pb2.TrainingRun], bool], seconds: float = 60.0
    ) -> training_pb2.TrainingRun:
        """Wait until a run is as wanted."""
        async with asyncio.timeout(seconds):
            while not condition(run := await self.get(run_id)):  # the state is in another process
                await asyncio.sleep(0.05)
        return run

    async def end_of(self, run_id: str) -> training_pb2.TrainingRun:
        """Wait until a run has ended."""
        return await self.until(run_id, lambda run: run.state in ENDED)


@asynccontextmanager
async def serving(
    settings: ServiceSettings, build: Callable[[grpc.aio.Server, Lifecycle], Awaitable[None]]
) -> AsyncIterator[str]:
    """Serve on a free port until the block ends; yields the address."""
    lifecycle = Lifecycle()
    server = make_server(settings, lifecycle)
    port = bind(server, settings)
    await build(server, lifecycle)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await drain(server, lifecycle, 0.0)


@asynccontextmanager
async def running_trainer(settings: RspoTrainerSettings) -> AsyncIterator[str]:
    """Run a trainer until the block ends; yields its address."""
    async with serving(settings, lambda server, lifecycle: build_trainer(server, lifecycle, settings)) as address:
        yield address


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """Logs without coloured tracebacks, which take seconds to draw."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])
    yield
    structlog.configure(**before)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database, for a look past the service."""
    database = Database(database_url, SCHEMA)
    await database.migrate("rspo_trainer")
    yield database
    await database.close()


@pytest.fixture
def sids() -> SidStandIn:
    """Forty ads over three levels."""
    codes = [(number % 8, number // 8, number % 4) for number in range(ADS)]
    return SidStandIn(LEVEL_SIZES, [entry(number, codes[number]) for number in range(ADS)])


@pytest.fixture
def other_settings() -> dict[str, float]:
    """Settings that a test wants other than they are; it parametrises this fixture."""
    return {}


@pytest.fixture
async def settings(
    database_url: str, artifact_store_url: str, sids: SidStandIn, other_settings: dict[str, float]
) -> AsyncIterator[RspoTrainerSettings]:
    """Settings of a trainer whose neighbours are running."""
    async with AsyncExitStack() as stack:

        async def build_sids(server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
            sid_pb2_grpc.add_SidServiceServicer_to_server(sids, server)

        sid_address = await stack.enter_async_context(serving(ServiceSettings(), build_sids))
        log_settings = RewardLoggerSettings(port=0, database_url=database_url)
        log_address = await stack.enter_async_context(
            serving(log_settings, lambda server, lifecycle: build_reward_logger(server, lifecycle, log_settings))
        )
        yield RspoTrainerSettings(
            port=0,
            database_url=database_url,
            artifact_store=artifact_store_url,
            sid_assigner_address=sid_address,
            reward_logger_address=log_address,
            torch_threads=1,
            progress_seconds=0.05,
            watch_heartbeat_seconds=0.3,
            outcome_wait_seconds=0.0,
            **({"dependency_wait_seconds": 10.0} | other_settings),
        )


@pytest.fixture
async def trainer(settings: RspoTrainerSettings, sids: SidStandIn, tmp_path: Path) -> AsyncIterator[Trainer]:
    """A running trainer."""
    folder = write_chain_folder(tmp_path / "data", ADS)
    async with (
        running_trainer(settings) as address,
        open_channel(address) as channel,
        open_channel(settings.reward_logger_address) as log_channel,
    ):
        yield Trainer(
            training_pb2_grpc.TrainingServiceStub(channel),
            reward_pb2_grpc.RewardServiceStub(log_channel),
            sids,
            settings,
            address,
            folder,
        )
