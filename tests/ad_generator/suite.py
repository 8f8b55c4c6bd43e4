"""A generator in the test's own process, with its neighbours."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from ad_generator.kserve_model import GeneratorModel
from ad_generator.kserve_server import GeneratorServer
from ad_generator.settings import AdGeneratorSettings
from ad_generator.wiring import SERVICES, build_generator
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.reward.v1 import reward_pb2_grpc
from gr4ad.sid.v1 import sid_pb2_grpc
from gr4ad.training.v1 import training_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.app import Lifecycle, bind, drain, make_server

from tests.ad_generator.neighbours import Catalogue, Catalogues, Channel, Neighbour, RewardLog, eventually
from tests.ad_generator.policies import CODEBOOK, LEVEL_SIZES, publish
from tests.plain_channel import plain_channel

ALL_SIDS = tuple(itertools.product(*map(range, LEVEL_SIZES)))
_numbers = itertools.count()


@dataclass
class Neighbours:
    """The services around a generator."""

    store_url: str
    catalogue: Catalogue
    catalogues: Catalogues
    channel: Channel = field(default_factory=Channel)
    rewards: RewardLog = field(default_factory=RewardLog)

    def __post_init__(self) -> None:
        self.sid_assigner = Neighbour(lambda s: sid_pb2_grpc.add_SidServiceServicer_to_server(self.catalogues, s))
        self.trainer = Neighbour(lambda s: training_pb2_grpc.add_TrainingServiceServicer_to_server(self.channel, s))
        self.reward_logger = Neighbour(lambda s: reward_pb2_grpc.add_RewardServiceServicer_to_server(self.rewards, s))

    def settings(self, **values: Any) -> AdGeneratorSettings:
        """Settings of a generator among these neighbours."""
        return AdGeneratorSettings(
            **{
                "port": 0,
                "log_level": "ERROR",
                "artifact_store": self.store_url,
                "policy_cache": str(Path(self.store_url).parent / "cache"),
                "sid_assigner_address": self.sid_assigner.address,
                "rspo_trainer_address": self.trainer.address,
                "reward_logger_address": self.reward_logger.address,
                "beam_widths": (3, 6, 10),
                "beam_scale_min": 1.0,  # fixed widths, unless a test is about them
                "beam_scale_max": 1.0,
                "max_batch_size": 4,
                **values,
            }
        )


@asynccontextmanager
async def run_neighbours(store_url: str) -> AsyncIterator[Neighbours]:
    """Run the neighbours of a generator, with no ad and no policy yet."""
    catalogue = Catalogue(CODEBOOK)
    neighbours = Neighbours(store_url, catalogue, Catalogues(catalogue))
    servers = (neighbours.sid_assigner, neighbours.trainer, neighbours.reward_logger)
    for server in servers:
        await server.start()
    try:
        yield neighbours
    finally:
        for server in servers:
            await server.stop()


@dataclass
class Suite:
    """A running generator, its neighbours and a client."""

    neighbours: Neighbours
    settings: AdGeneratorSettings
    lifecycle: Lifecycle
    server: grpc.aio.Server
    address: str
    client: grpc.aio.Channel
    stub: Any
    model: GeneratorModel

    def policy_pids(self) -> set[int]:
        """Return the processes that policies compute in."""
        return {process.pid for process in multiprocessing.active_children() if process.name.startswith("policy ")}

    async def ask(self, history: Sequence[str] = (), count: int = 5, **values: Any) -> Any:
        """Ask for ads for a user who clicked on some."""
        return await self.stub.GenerateAds(request(history, count, **values), timeout=10)

    async def status(self) -> generation_pb2.GetEngineStatusResponse:
        """Ask the engine for its status."""
        return await self.stub.GetEngineStatus(generation_pb2.GetEngineStatusRequest(), timeout=10)

    async def serves(self, policy_id: str) -> None:
        """Wait until a policy answers."""
        await self.reaches(lambda status: status.policy.policy_id == policy_id, f"{policy_id} serves")

    async def reaches(self, condition: Callable[[generation_pb2.GetEngineStatusResponse], bool], what: str) -> None:
        """Wait until the status meets a condition."""
        deadline = asyncio.get_running_loop().time() + 15.0
        while not condition(status := await self.status()):
            assert asyncio.get_running_loop().time() < deadline, f"not reached: {what}: {status}"
            await asyncio.sleep(0.01)

    async def drain(self) -> None:
        """Stop the generator as a SIGTERM would."""
        await drain(self.server, self.lifecycle, self.settings.drain_seconds)


@asynccontextmanager
async def run_generator(neighbours: Neighbours, **values: Any) -> AsyncIterator[Suite]:
    """Run a generator on a free port."""
    settings = neighbours.settings(**values)
    lifecycle = Lifecycle(SERVICES)
    server = make_server(settings, lifecycle)
    port = bind(server, settings)
    kserve = GeneratorServer(settings.host, 0)

    async def unused(model: GeneratorModel) -> int:
        raise AssertionError("the test runs the engine itself")

    model = GeneratorModel(settings.model_name, len(settings.beam_widths), unused)
    kserve.register_model(model)
    build_generator(settings, model, kserve, server, lifecycle)
    await server.start()
    address = f"127.0.0.1:{port}"
    async with plain_channel(address) as client:
        stub = generation_pb2_grpc.GenerationServiceStub(client)
        suite = Suite(neighbours, settings, lifecycle, server, address, client, stub, model)
        try:
            yield suite
        finally:
            if not lifecycle.stopping.is_set():
                await suite.drain()
            assert lifecycle.failure is None, repr(lifecycle.failure)


@asynccontextmanager
async def run_ready_generator(neighbours: Neighbours, **values: Any) -> AsyncIterator[Suite]:
    """Run a generator with every SID of the codebook as a live ad and a policy `first`."""
    neighbours.catalogue.fill(ALL_SIDS)
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours, **values) as suite:
        await eventually(lambda: suite.lifecycle.ready, "the generator is ready")
        yield suite


def request(history: Sequence[str] = (), count: int = 5, **values: Any) -> generation_pb2.GenerateAdsRequest:
    """Make a request of a user who clicked on some ads."""
    context = type_pb2.UserContext(
        history=[type_pb2.HistoryEvent(ad_id=ad_id, behavior=type_pb2.BEHAVIOR_CLICK) for ad_id in history],
        cold_start=not history,
    )
    context.request_time.FromSeconds(1_700_000_000)
    return generation_pb2.GenerateAdsRequest(
        **{"request_id": f"r{next(_numbers)}", "user_context": context, "candidate_count": count, **values}
    )
