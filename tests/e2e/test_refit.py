"""A codebook is fitted anew and takes over while requests flow: four processes, PostgreSQL, real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2
from gr4ad_core.learning.data_folder import read_interactions
from gr4ad_runtime.channels import open_channel
from gr4ad_tools import codebook, ingest, train
from gr4ad_tools.codebook_fit import FitOptions, fit_codebook_from_folder
from gr4ad_tools.demo.arms import until_served
from gr4ad_tools.leave_one_out import leave_one_out
from gr4ad_tools.simulate import Market
from gr4ad_tools.up import Suite
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(180)
USERS, CANDIDATES, RPC_TIMEOUT_S = 4, 20, 10.0


@dataclass
class Traffic:
    """What users got, in the order it came: the codebook of the policy, and the ads."""

    answers: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def flowing(self, folder: Path, channel: grpc.aio.Channel) -> AsyncIterator[None]:
        """Let users ask, one request after the other each, for as long as the block lasts."""
        contexts = leave_one_out(read_interactions(folder)).contexts()
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        stop, numbers = asyncio.Event(), itertools.count()

        async def user() -> None:
            while not stop.is_set():
                number = next(numbers)
                request = generation_pb2.GenerateAdsRequest(
                    request_id=f"refit-{number}",
                    user_context=contexts[number % len(contexts)],
                    candidate_count=CANDIDATES,
                )
                try:
                    answer = await stub.GenerateAds(request, timeout=RPC_TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                else:
                    ads = frozenset(ad.ad_id for ad in answer.candidates)
                    self.answers.append((answer.policy.codebook_id, ads))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(USERS):
                tasks.create_task(user())
            try:
                yield
            finally:
                stop.set()


async def test_a_refit_takes_over_while_requests_flow(tmp_path: Path) -> None:
    folder = tmp_path / "market"
    Market("tiny", 3).write_folder(folder)
    source = training_pb2.DataFolderSource(path=str(folder))
    traffic = Traffic()
    async with (
        Suite(tmp_path / "suite", env={"GR4AD_LOG_LEVEL": "ERROR"}, durable=False) as suite,
        AsyncExitStack() as stack,
    ):
        assigner, trainer = suite.addresses["sid_assigner"], suite.addresses["rspo_trainer"]
        generator = await stack.enter_async_context(open_channel(suite.addresses["ad_generator"]))
        sids = sid_pb2_grpc.SidServiceStub(await stack.enter_async_context(open_channel(assigner)))

        async def train_policy(seed: int, codebook_id: str) -> str:
            run = await train.train_and_wait(
                trainer, data_folder=source, preset="tiny", seed=seed, channel="stable", codebook_id=codebook_id
            )
            return run.policy.policy_id

        async def sids_under(codebook_id: str) -> dict[str, tuple[int, ...]]:
            request = sid_pb2.ReadCatalogRequest(codebook_id=codebook_id, until_current=True)
            return {e.ad_id: tuple(e.sid.codes) async for part in sids.ReadCatalog(request) for e in part.entries}

        await asyncio.to_thread(fit_codebook_from_folder, folder, suite.artifact_store, "spring", FitOptions(seed=1))
        await codebook.activate_codebook(assigner, "spring")
        await ingest.ingest_folder(folder, assigner)
        await until_served(generator, await train_policy(1, ""))
        first = await sids_under("spring")

        async with traffic.flowing(folder, generator):
            await asyncio.to_thread(
                fit_codebook_from_folder, folder, suite.artifact_store, "autumn", FitOptions(seed=2)
            )
            beside = await codebook.register_codebook(assigner, "autumn")
            assert beside.state == sid_pb2.CODEBOOK_STATE_STANDBY
            new_ads = [sid_pb2.Ad(ad_id=f"new-{n}", title=f"running shoes, model {n}", brand="acme") for n in range(3)]
            await sids.BatchCreateAdSids(sid_pb2.BatchCreateAdSidsRequest(request_id="during", ads=new_ads))
            policy_id = await train_policy(2, "autumn")
            await until_served(generator, policy_id)

            # An ad that users are shown is paused: from the acknowledgement on nobody may get it.
            paused = next(iter(traffic.answers[-1][1]))
            await sids.UpdateAd(sid_pb2.UpdateAdRequest(ad_id=paused, state=sid_pb2.AD_STATE_PAUSED))
            await asyncio.sleep(1.0)
            without = len(traffic.answers)
            await codebook.activate_codebook(assigner, "autumn")

            # The canary's channel has no policy, the stable one's has left the old codebook: it may go.
            retired = await asyncio.to_thread(
                CliRunner().invoke,
                codebook.app,
                ["retire", "spring", "--address", assigner, "--trainer", trainer],
            )
            assert retired.exit_code == 0, retired.output
            needed = await asyncio.to_thread(
                CliRunner().invoke,
                codebook.app,
                ["retire", "autumn", "--address", assigner, "--trainer", trainer],
            )
            assert needed.exit_code == 1
            assert "autumn: the current policies of stable need it" in needed.output
            await asyncio.sleep(0.5)

        moved = {
            row.ad_id: tuple(row.sid.codes)
            for row in await ingest.look_up_all(assigner, list(first)[:500], codebook_id="spring")
        }
        under_new = await sids_under("")
    assert traffic.failures == []
    codebooks = [codebook_id for codebook_id, _ in traffic.answers]
    swap = codebooks.index("autumn")
    assert set(codebooks[:swap]) == {"spring"}, "the old policy serves until the new one is live"
    assert set(codebooks[swap + USERS :]) == {"autumn"}, "and then the new one alone"
    assert swap > 20
    assert len(codebooks) - swap > 20
    assert not any(paused in ads for _, ads in traffic.answers[without:])
    assert all(ads for _, ads in traffic.answers)
    assert {ad_id: codes for ad_id, codes in first.items() if ad_id in moved} == moved
    assert under_new.keys() == first.keys() | {ad.ad_id for ad in new_ads}
