"""Makes a policy: reads the samples a run names, trains, and publishes the checkpoint to the artifact store."""

from __future__ import annotations

import asyncio
import math
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad.training.v1 import training_pb2
from gr4ad_core.learning.checkpoint import save_checkpoint
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.learning.trainer import Progress, TrainingStoppedError, train_vsl
from gr4ad_runtime import semconv
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.telemetry import tracer
from opentelemetry import context as otel_context

from rspo_trainer.catalogue import STREAM_TIMEOUT_S, Catalogue, read_catalogue
from rspo_trainer.dependency import read_patiently
from rspo_trainer.folder_source import samples_of_folder
from rspo_trainer.log_source import LogSamples
from rspo_trainer.policy_store import NewPolicy
from rspo_trainer.recipe import DEFAULT_PRESET, make_recipe
from rspo_trainer.settings import RspoTrainerSettings
from rspo_trainer.training_run import Run, RunProgress

T = TypeVar("T")

ARTIFACT_FOLDER = "policies"

_tracer = tracer("rspo_trainer")


@dataclass
class Job:
    """A run under way in this process. The training thread writes `progress` and reads `stop`; both are atomic."""

    run: Run
    stop: threading.Event = field(default_factory=threading.Event)
    progress: RunProgress = field(default_factory=RunProgress)

    def report(self, progress: Progress) -> None:
        """Note how far training is."""
        losses = (*self.progress.losses, (progress.step, progress.loss))
        self.progress = RunProgress(progress.step, progress.total_steps, losses)


class PolicyMaker:
    """Makes one policy at a time. What computes or blocks runs in its single thread."""

    def __init__(self, settings: RspoTrainerSettings, artifacts: ArtifactStore) -> None:
        """Read from the services that `settings` name and publish to `artifacts`."""
        self._settings = settings
        self._artifacts = artifacts
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")

    async def make(self, job: Job) -> NewPolicy:
        """Carry a run out up to its policy's folder in the artifact store. Cancelling the call stops the training.

        Raises:
            TrainingStoppedError: `job.stop` was set.
            Gr4adError: A source, the catalogue or the artifact store does not allow it.
            DataFolderError: The data folder cannot be used.
            CheckpointError: The weights are not finite or the disk refuses.
            DivergedError: The loss is not finite.
            ValueError: The samples or the recipe make no training.
        """
        with _tracer.start_as_current_span(semconv.SPAN_READ_SAMPLES) as span:
            catalogue = await self._catalogue()
            samples = await self._samples(job.run.request, catalogue)
            span.set_attributes({semconv.SAMPLE_COUNT: len(samples), semconv.CODEBOOK_ID: catalogue.codebook_id})
        return await self._in_thread(job, lambda: self._train_and_publish(job, catalogue, samples))

    async def _catalogue(self) -> Catalogue:
        address = self._settings.sid_assigner_address
        async with open_channel(address) as channel:
            return await read_patiently(
                lambda: read_catalogue(channel),
                service="sid_assigner",
                address=address,
                variable="GR4AD_SID_ASSIGNER_ADDRESS",
                wait_s=self._settings.dependency_wait_seconds,
            )

    async def _samples(self, request: training_pb2.CreateTrainingRunRequest, catalogue: Catalogue) -> TrainingSet:
        if request.WhichOneof("source") == "data_folder":
            folder = request.data_folder
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, samples_of_folder, Path(folder.path), folder.holdout_events, catalogue.ads
            )
        return (await self._log_samples(request.reward_log.cursor, catalogue)).training_set()

    async def _log_samples(self, cursor: int, catalogue: Catalogue) -> LogSamples:
        samples = LogSamples(catalogue.ads)
        address = self._settings.reward_logger_address

        async def read() -> None:
            nonlocal cursor
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            request = reward_pb2.ReadRewardedListsRequest(cursor=cursor)
            async for part in stub.ReadRewardedLists(request, timeout=STREAM_TIMEOUT_S):
                for rewarded in part.rewarded_lists:
                    samples.add(rewarded)
                cursor = part.cursor

        async with open_channel(address) as channel:
            await read_patiently(
                read,
                service="reward_logger",
                address=address,
                variable="GR4AD_REWARD_LOGGER_ADDRESS",
                wait_s=self._settings.dependency_wait_seconds,
            )
        return samples

    def _train_and_publish(self, job: Job, catalogue: Catalogue, samples: TrainingSet) -> NewPolicy:
        request = job.run.request
        model_config, config = make_recipe(request.preset, request.epochs, catalogue.level_sizes)
        trained = train_vsl(
            samples,
            model_config,
            config,
            request.seed,
            on_progress=job.report,
            should_stop=job.stop.is_set,
            device=self._settings.device,
            threads=self._settings.torch_threads,
        )
        metrics = {name: value for name, value in trained.metrics.items() if math.isfinite(value)}
        policy_id = f"{request.preset or DEFAULT_PRESET}-{datetime.now(UTC):%Y%m%dt%H%M%S}-{uuid.uuid4().hex[:8]}"
        # Named by the attempt, not the run: an attempt that was interrupted may have left a folder under its own name.
        name = f"{ARTIFACT_FOLDER}/{policy_id}"
        with tempfile.TemporaryDirectory(prefix="gr4ad-policy-") as scratch:
            manifest = save_checkpoint(
                Path(scratch) / policy_id,
                trained.model,
                policy_id,
                catalogue.codebook_id,
                metrics,
                {
                    "preset": request.preset or DEFAULT_PRESET,
                    "seed": request.seed,
                    "source": request.WhichOneof("source"),
                    "run_id": job.run.run_id,
                    "vsl": config.to_dict(),
                },
            )
            if job.stop.is_set():
                raise TrainingStoppedError(job.progress.step, job.progress.total_steps)
            uri = self._artifacts.publish_folder(Path(scratch) / policy_id, name)
        return NewPolicy(policy_id, catalogue.codebook_id, manifest.sha256, uri, metrics)

    async def _in_thread(self, job: Job, work: Callable[[], T]) -> T:
        """Run blocking work in the training thread; when cancelled, stop the training and wait for it to end."""
        context = otel_context.get_current()

        def run() -> T:
            token = otel_context.attach(context)
            try:
                return work()
            finally:
                otel_context.detach(token)

        future = asyncio.get_running_loop().run_in_executor(self._thread, run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            job.stop.set()
            await asyncio.wait([future])
            future.exception()  # seen: the caller goes by its own cancellation
            raise
