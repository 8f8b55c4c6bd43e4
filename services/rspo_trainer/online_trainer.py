"""Carries an online run out: reads the reward log as it grows, learns, and publishes what passes the gate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from gr4ad.reward.v1 import reward_pb2
from gr4ad.training.v1 import training_pb2
from gr4ad_core.learning.checkpoint import CheckpointError
from gr4ad_core.learning.list_objective import Preference
from gr4ad_core.learning.trainer import TrainingStoppedError
from gr4ad_runtime import semconv
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.errors import Gr4adError, UnavailableError
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.telemetry import context_of, current_traceparent, meter, tracer
from opentelemetry import trace
from opentelemetry.trace import Link

from rspo_trainer.catalogue import Catalogue, catalogue_of
from rspo_trainer.dependency import write_persistently
from rspo_trainer.online_session import OnlineSession, limit_threads
from rspo_trainer.policy_maker import Job
from rspo_trainer.policy_store import PolicyStore
from rspo_trainer.reward_stream import RewardStream
from rspo_trainer.run_queue import RunQueue
from rspo_trainer.settings import RspoTrainerSettings
from rspo_trainer.training_run import RunProgress
from rspo_trainer.training_thread import TrainingThread

ROUND_LISTS = 256
"""Lists learned from at a time: enough for several steps, so that the reward model is fitted once for them."""
ROUND_WAIT_S = 2.0
PATIENCE_S = 5.0
"""How long to ask a log that is away before looking whether the run was stopped; then it is asked again."""
CATALOGUE_S = 60.0
"""How often the catalogue is read anew: new ads come, bids change."""
STATE_S = 30.0
"""How often the state is kept, beside every publication: so much is learned anew after a crash."""
PREFERENCES: Mapping[training_pb2.Preference.ValueType, Preference] = {
    training_pb2.PREFERENCE_UNSPECIFIED: "rspo",
    training_pb2.PREFERENCE_RSPO: "rspo",
    training_pb2.PREFERENCE_DPO: "dpo",
}
LARGEST_LINKS = 32
LATEST_LOSSES = 1000

log = get_logger(__name__)
_tracer = tracer("rspo_trainer")
_meter = meter("rspo_trainer")
_learned = _meter.create_counter(semconv.METRIC_LISTS_LEARNED, description="Rewarded lists read by online runs.")
_published = _meter.create_counter(semconv.METRIC_POLICIES_PUBLISHED, description="Policies published.")
_refused = _meter.create_counter(semconv.METRIC_POLICIES_GATED, description="Policies that the gate refused.")


class OnlineTrainer:
    """Learns from the stream until it is told to stop; a new process goes on where the last state was kept."""

    def __init__(
        self,
        settings: RspoTrainerSettings,
        artifacts: ArtifactStore,
        thread: TrainingThread,
        queue: RunQueue,
        policies: PolicyStore,
    ) -> None:
        """Read from the services that `settings` name, compute in `thread`, keep everything else in the others."""
        self._settings = settings
        self._artifacts = artifacts
        self._thread = thread
        self._queue = queue
        self._policies = policies

    async def run(self, job: Job) -> None:
        """Carry a run out.

        Raises:
            TrainingStoppedError: `job.stop` was set: always, sooner or later. Until then, what is away is waited for.
            Gr4adError: A source or the catalogue refuses, or the artifact store lacks what the run goes on from.
            CheckpointError: The policy or the state that the run goes on from is not what it should be.
        """
        publish_lists = job.run.request.online.publish_lists or self._settings.publish_lists
        session, traces = await self._open(job), _Traces()
        published, catalogue_read = _Mark.at(session), time.monotonic()
        kept = replace(published, lists=-1)  # a first state soon, even of no list: it says that the run does not crash
        async with open_channel(self._settings.reward_logger_address) as channel:
            stream = RewardStream(channel, session.cursor, self._settings, PATIENCE_S)
            while not job.stop.is_set():
                lists = await stream.read(min(ROUND_LISTS, publish_lists), ROUND_WAIT_S)
                if lists:
                    traces.add(lists)
                    await self._learn(job, session, lists, stream.cursor)
                long_ago = published.age_s > self._settings.publish_seconds
                many = session.counts.lists >= published.lists + publish_lists
                if session.steps > published.steps and session.measurable and (many or long_ago):
                    if time.monotonic() - catalogue_read > CATALOGUE_S:
                        session.know(await self._catalogue(job, session.codebook_id))
                        catalogue_read = time.monotonic()
                    with traces.span(job):
                        await self._publish_if_fit(job, session)
                    published = kept = _Mark.at(session)
                elif session.counts.lists > kept.lists and kept.age_s > STATE_S:
                    await self._keep_state(job, session)
                    kept = _Mark.at(session)
        await self._keep_state(job, session)
        raise TrainingStoppedError(job.progress.step, job.progress.total_steps)

    async def _open(self, job: Job) -> OnlineSession:
        """Start from the run's policy, or go on from its state."""
        source = job.run.request.online
        start = await self._policies.get(source.policy_id)
        catalogue = await self._catalogue(job, start.codebook_id)

        def load() -> OnlineSession:
            limit_threads(self._settings.online_threads)
            session = OnlineSession(
                self._artifacts, job.run.run_id, start, catalogue, self._settings.device, PREFERENCES[source.preference]
            )
            session.cursor = source.cursor
            if job.run.checkpoint:
                session.restore(job.run.checkpoint)
            return session

        session = await self._thread.run(load, job.stop)
        if job.run.checkpoint:
            await self._gather_held_out(job, session)
        job.progress = RunProgress(step=session.steps, cursor=session.cursor, metrics=_metrics(session, {}))
        job.checkpoint = job.run.checkpoint
        log.info("learning online", run_id=job.run.run_id, policy_id=start.policy_id, cursor=session.cursor)
        return session

    async def _gather_held_out(self, job: Job, session: OnlineSession) -> None:
        """Read the lists again that a gate measures on: the state says only where they are."""
        async with open_channel(self._settings.reward_logger_address) as channel:
            stream = RewardStream(channel, session.held_out_after, self._settings, PATIENCE_S)
            while stream.cursor < session.cursor and not job.stop.is_set():
                before = stream.cursor
                lists = (await stream.read(ROUND_LISTS, ROUND_WAIT_S))[: session.cursor - before]
                await self._thread.run(partial(session.gather_held_out, lists, before + len(lists)), job.stop)

    async def _catalogue(self, job: Job, codebook_id: str) -> Catalogue:
        """Return the catalogue under a codebook, once the SID assigner tells it.

        Raises:
            TrainingStoppedError: `job.stop` was set meanwhile.
        """
        while not job.stop.is_set():
            try:
                return await catalogue_of(self._settings, codebook_id)
            except UnavailableError as error:
                log.warning("learning waits for the catalogue", error=error.message)
        raise TrainingStoppedError(job.progress.step, job.progress.total_steps)

    async def _learn(self, job: Job, session: OnlineSession, lists: list[reward_pb2.RewardedList], cursor: int) -> None:
        diverged = session.counts.diverged
        await self._thread.run(partial(session.learn, lists, cursor), job.stop)
        if session.counts.diverged > diverged:
            log.warning("loss not finite: back to the last policy that passed", run_id=job.run.run_id, cursor=cursor)
        _learned.add(len(lists))
        self._note(job, session)

    async def _publish_if_fit(self, job: Job, session: OnlineSession) -> None:
        report = await self._thread.run(session.check, job.stop)
        job.progress = job.progress.with_metrics(_metrics(session, report.metrics))
        if report.refusals:
            _refused.add(1)
            log.warning("policy not published", run_id=job.run.run_id, reasons=report.refusals)
            await self._keep_state(job, session)
            return
        try:
            policy = await self._thread.run(lambda: session.write_policy(_metrics(session, report.metrics)), job.stop)
        except (Gr4adError, CheckpointError, OSError) as error:
            log.warning("policy not published", run_id=job.run.run_id, reasons=[str(error)])
            return
        attributes = {semconv.POLICY_ID: policy.policy_id, semconv.POLICY_CHANNEL: job.run.request.channel}
        with _tracer.start_as_current_span(semconv.SPAN_PUBLISH_POLICY, attributes=attributes):
            traceparent = current_traceparent()
            published = await write_persistently(lambda: self._queue.publish(job.run, policy, traceparent))
        if not published:
            job.stop.set()
            return
        session.counts.published += 1
        job.progress = job.progress.with_metrics(_metrics(session, report.metrics))
        _published.add(1)
        log.info("policy published", run_id=job.run.run_id, policy_id=policy.policy_id, **report.metrics)
        await self._keep_state(job, session)

    async def _keep_state(self, job: Job, session: OnlineSession) -> None:
        try:
            name = await self._thread.run(session.write_state, job.stop)
        except (Gr4adError, CheckpointError, OSError) as error:
            log.warning("state not kept", run_id=job.run.run_id, error=str(error))
            return
        kept = await write_persistently(lambda: self._queue.save_checkpoint(job.run, job.progress, name))
        old, job.checkpoint = (job.checkpoint, name) if kept else (name, job.checkpoint)
        if not kept:
            job.stop.set()
        if old:
            try:
                await self._thread.run(lambda: session.forget_state(old), job.stop)
            except Gr4adError as error:
                log.warning("old state not removed", run_id=job.run.run_id, error=error.message)

    def _note(self, job: Job, session: OnlineSession) -> None:
        means = session.means()
        losses = job.progress.losses
        if "loss" in means:
            losses = (*losses, (session.steps, means["loss"]))[-LATEST_LOSSES:]
        job.progress = RunProgress(
            step=session.steps,
            losses=losses,
            cursor=session.cursor,
            metrics=_metrics(session, job.progress.metrics | means),
        )


@dataclass(frozen=True)
class _Mark:
    """Where an online run was at some moment: steps done, lists read, and when."""

    steps: int
    lists: int
    time_s: float

    @classmethod
    def at(cls, session: OnlineSession) -> _Mark:
        """Mark where a run is now."""
        return cls(session.steps, session.counts.lists, time.monotonic())

    @property
    def age_s(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.time_s


class _Traces:
    """The traced outcomes since the last publication: the next one belongs to the first's trace, linked to the rest."""

    def __init__(self) -> None:
        self._traceparents: deque[str] = deque(maxlen=LARGEST_LINKS)
        self._start_ns = time.time_ns()

    def add(self, lists: list[reward_pb2.RewardedList]) -> None:
        """Note the traces of the lists' outcomes."""
        self._traceparents.extend(parent for rewarded in lists for parent in rewarded.traceparents)

    @contextmanager
    def span(self, job: Job) -> Iterator[None]:
        """Open the span of learning since the last publication, and begin anew."""
        parents = list(dict.fromkeys(self._traceparents)) or [job.run.traceparent]
        contexts = [context_of(parent) for parent in parents]
        span = _tracer.start_span(
            semconv.SPAN_LEARN_FROM_LISTS,
            context=contexts[0],
            links=[Link(trace.get_current_span(context).get_span_context()) for context in contexts[1:]],
            attributes={semconv.RUN_ID: job.run.run_id},
            start_time=self._start_ns,
        )
        self._traceparents.clear()
        with trace.use_span(span, end_on_exit=True):
            yield
        self._start_ns = time.time_ns()


def _metrics(session: OnlineSession, measured: dict[str, float]) -> dict[str, float]:
    return {**measured, **{name: float(count) for name, count in vars(session.counts).items()}}
