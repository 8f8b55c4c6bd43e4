"""Makes a policy: reads the samples a run names, trains, and publishes the checkpoint to the artifact store."""

from __future__ import annotations

import math
import tempfile
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_core.learning.checkpoint import save_checkpoint
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.learning.trainer import Progress, TrainingStoppedError, train_vsl
from gr4ad_runtime import semconv
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.telemetry import tracer

from rspo_trainer.catalogue import STREAM_TIMEOUT_S, Catalogue, catalogue_of
from rspo_trainer.dependency import read_patiently
from rspo_trainer.folder_source import samples_of_folder
from rspo_trainer.log_source import LogSamples
from rspo_trainer.policy_store import NewPolicy
from rspo_trainer.recipe import DEFAULT_PRESET, make_recipe
from rspo_trainer.settings import RspoTrainerSettings
from rspo_trainer.training_run import Run, RunProgress
from rspo_trainer.training_thread import TrainingThread

ARTIFACT_FOLDER = "policies"

_tracer = tracer("rspo_trainer")


@dataclass
class Job:
    """A run under way in this process. The training thread writes `progress` and reads `stop`; both are atomic."""

    run: Run
    stop: threading.Event = field(default_factory=threading.Event)
    progress: RunProgress = field(default_factory=RunProgress)
    checkpoint: str = ""

    def report(self, progress: Progress) -> None:
        """Note how far training is."""
        losses = (*self.progress.losses, (progress.step, progress.loss))
        self.progress = RunProgress(progress.step, progress.total_steps, losses)


class PolicyMaker:
    """Makes one policy at a time."""

    def __init__(self, settings: RspoTrainerSettings, artifacts: ArtifactStore, thread: TrainingThread) -> None:
        """Read from the services that `settings` name, compute in `thread` and publish to `artifacts`."""
        self._settings = settings
        self._artifacts = artifacts
        self._thread = thread

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
            catalogue = await catalogue_of(self._settings, job.run.request.codebook_id)
            samples = await self._samples(job, catalogue)
            span.set_attributes({semconv.SAMPLE_COUNT: len(samples), semconv.CODEBOOK_ID: catalogue.codebook_id})
        return await self._thread.run(lambda: self._train_and_publish(job, catalogue, samples), job.stop)

    async def _samples(self, job: Job, catalogue: Catalogue) -> TrainingSet:
        request = job.run.request
        if request.WhichOneof("source") == "data_folder":
            folder = request.data_folder
            return await self._thread.run(
                lambda: samples_of_folder(Path(folder.path), folder.holdout_events, catalogue.ads), job.stop
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
                    "charge_rates": {name: list(rates) for name, rates in samples.charge_rates.rates.items()},
                },
            )
            if job.stop.is_set():
                raise TrainingStoppedError(job.progress.step, job.progress.total_steps)
            uri = self._artifacts.publish_folder(Path(scratch) / policy_id, name)
        return NewPolicy(policy_id, catalogue.codebook_id, manifest.sha256, uri, metrics)
