"""The trainer as a process beside a real SID assigner: killed in the middle of a run, started again, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_core.learning.checkpoint import load_checkpoint
from gr4ad_core.sid.codebook import CodebookConfig, fit_codebook, save_codebook
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_tools import train
from gr4ad_tools.train import train_and_wait
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sid_assigner.__main__ import build as build_sid_assigner
from sid_assigner.settings import SidAssignerSettings

from tests.oracles.chain_folder import write_chain_folder
from tests.rspo_trainer.conftest import serving

SERVICE = "gr4ad.training.v1.TrainingService"
ADS, DIM = 40, 8


@asynccontextmanager
async def sid_assigner(database_url: str, artifact_store_url: str) -> AsyncIterator[str]:
    """A SID assigner that knows the ads of the chain folder, by vectors of their own; yields its address."""
    vectors = np.random.default_rng(3).normal(size=(ADS, DIM)).astype(np.float32)
    codebook = fit_codebook(
        vectors, CodebookConfig(level_sizes=(4, 4, 16), embedding_dim=DIM, seed=3), codebook_id="vectors"
    )
    save_codebook(codebook, Path(artifact_store_url) / "codebooks" / "vectors")
    settings = SidAssignerSettings(port=0, database_url=database_url, artifact_store=artifact_store_url)
    async with serving(settings, lambda server, lifecycle: build_sid_assigner(server, lifecycle, settings)) as address:
        async with open_channel(address) as channel:
            stub = sid_pb2_grpc.SidServiceStub(channel)
            await stub.ActivateCodebook(sid_pb2.ActivateCodebookRequest(codebook_id="vectors"))
            ads = [sid_pb2.Ad(ad_id=f"ad-{n}", bid_micros=10, embedding=vectors[n]) for n in range(ADS)]
            await stub.BatchCreateAdSids(sid_pb2.BatchCreateAdSidsRequest(request_id="ads", ads=ads))
        yield address


@asynccontextmanager
async def process(port: int, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the trainer and wait until it is ready; it is killed at the end if it still runs."""
    variables = {"GR4AD_PORT": str(port), "GR4AD_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", **environment}
    started = await asyncio.create_subprocess_exec(sys.executable, "-m", "rspo_trainer", env=os.environ | variables)
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            async with asyncio.timeout(60):
                while True:
                    assert started.returncode is None
                    try:
                        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.05)
                        continue
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def test_killed_in_a_run_and_started_again_it_trains_publishes_and_drains(
    database_url: str,
    artifact_store_url: str,
    free_port: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "POLL_S", 0.05)  # to catch the run in its middle
    port, folder = free_port(), write_chain_folder(tmp_path / "data", ADS)
    begun = asyncio.Event()

    def progress(run: training_pb2.TrainingRun) -> None:
        if run.step > 0:
            begun.set()

    async with sid_assigner(database_url, artifact_store_url) as sid_address:
        environment = {
            "GR4AD_DATABASE_URL": database_url,
            "GR4AD_ARTIFACT_STORE": artifact_store_url,
            "GR4AD_SID_ASSIGNER_ADDRESS": sid_address,
            "GR4AD_TORCH_THREADS": "1",
            "GR4AD_PROGRESS_SECONDS": "0.1",
        }
        # Waits for the trainer before it is there, while it is killed, and until it is back.
        waiting = asyncio.create_task(
            train_and_wait(
                f"127.0.0.1:{port}",
                data_folder=training_pb2.DataFolderSource(path=str(folder), holdout_events=2),
                preset="tiny",
                epochs=60,
                seed=1,
                channel="stable",
                progress=progress,
            )
        )
        async with process(port, environment) as first:
            await asyncio.wait_for(begun.wait(), 60)
            assert not waiting.done()
            first.kill()
            await first.wait()
        async with process(port, environment) as second:
            run = await asyncio.wait_for(waiting, 90)
            async with open_channel(f"127.0.0.1:{port}") as channel:
                stub = training_pb2_grpc.TrainingServiceStub(channel)
                (policy,) = (await stub.ListPolicies(training_pb2.ListPoliciesRequest())).policies
            second.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(second.wait(), 10) == 0
    assert policy.policy == run.policy
    assert list(policy.channels) == ["stable"]
    assert run.policy.codebook_id == "vectors"
    store = ArtifactStore(artifact_store_url)
    assert store.list_names("policies") == [f"policies/{run.policy.policy_id}"]
    model, _ = load_checkpoint(store.fetch_folder(f"policies/{run.policy.policy_id}", tmp_path / "policy"), "vectors")
    assert model.config.level_sizes == (4, 4, 16)
