"""Carries training runs out, one after the other."""

from __future__ import annotations

import asyncio
import contextlib

from gr4ad_core.learning.trainer import TrainingStoppedError
from gr4ad_runtime import semconv
from gr4ad_runtime.errors import Gr4adError
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.telemetry import context_of, current_traceparent, meter, tracer

from rspo_trainer.dependency import write_persistently
from rspo_trainer.failure import failure_message, is_explained
from rspo_trainer.models import CANCELLED, FAILED, SUCCEEDED
from rspo_trainer.online_trainer import OnlineTrainer
from rspo_trainer.policy_maker import Job, PolicyMaker
from rspo_trainer.policy_store import NewPolicy
from rspo_trainer.run_queue import RunQueue
from rspo_trainer.training_run import Run

IDLE_S = 5.0
"""How often the queue is looked at without being woken: another process may have filled it."""
TAKEN_OVER = "taken_over"
"""Outcome of a run that another process believed orphaned and now runs itself."""

log = get_logger(__name__)
_tracer = tracer("rspo_trainer")
_meter = meter("rspo_trainer")
_runs_ended = _meter.create_counter(semconv.METRIC_TRAINING_RUNS, description="Training runs by outcome.")
_published = _meter.create_counter(semconv.METRIC_POLICIES_PUBLISHED, description="Policies published.")


class Worker:
    """Empties the queue of runs. A database that is away delays the end of a run, and loses nothing."""

    def __init__(self, queue: RunQueue, maker: PolicyMaker, online: OnlineTrainer, progress_s: float) -> None:
        """Take runs from `queue`, have them done by `maker` and `online`, store progress every `progress_s` seconds."""
        self._queue = queue
        self._maker = maker
        self._online = online
        self._progress_s = progress_s
        self._woken = asyncio.Event()
        self._job: Job | None = None

    def wake(self) -> None:
        """Look at the queue now."""
        self._woken.set()

    def cancel(self, run_id: str) -> None:
        """Stop the run if it is the one under way here; its state in the database says that it was cancelled."""
        if self._job is not None and self._job.run.run_id == run_id:
            self._job.stop.set()

    async def work(self) -> None:
        """Carry runs out until cancelled; the run under way then goes back into the queue."""
        recovered = await write_persistently(self._queue.recover)
        if recovered:
            log.warning("runs of an earlier process settled", count=recovered)
        while True:
            self._woken.clear()
            run = await write_persistently(self._queue.claim)
            if run is not None:
                await self._execute(run)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._woken.wait()

    async def _execute(self, run: Run) -> None:
        job = self._job = Job(run)
        log.info("run begins", run_id=run.run_id, attempt=run.attempt)
        reporter = asyncio.create_task(self._report(job), name="progress")
        attributes = {semconv.RUN_ID: run.run_id, semconv.PRESET: run.request.preset}
        try:
            with _tracer.start_as_current_span(
                semconv.SPAN_TRAIN_POLICY, context=context_of(run.traceparent), attributes=attributes
            ) as span:
                outcome = await self._carry_out(job)
                span.set_attribute(semconv.OUTCOME, outcome)
        except asyncio.CancelledError:
            try:
                await self._queue.give_back(run)
            except Gr4adError as error:
                # It stays running in the database, and the next process settles it.
                log.warning("run not given back", run_id=run.run_id, error=error.message)
            raise
        finally:
            self._job = None
            reporter.cancel()
        _runs_ended.add(1, {semconv.OUTCOME: outcome})
        log.info("run ended", run_id=run.run_id, outcome=outcome)

    async def _carry_out(self, job: Job) -> str:
        """Make and publish the policy of a run; return how the run ended."""
        run = job.run
        try:
            if run.request.WhichOneof("source") == "online":
                await self._online.run(job)
            policy = await self._maker.make(job)
            if await self._publish(job, policy):
                return SUCCEEDED
        except TrainingStoppedError:
            pass
        except Exception as error:
            if not is_explained(error):
                log.exception("run crashed", run_id=run.run_id)
            message = failure_message(error, run.run_id)
            log.warning("run failed", run_id=run.run_id, error=message)
            await write_persistently(lambda: self._queue.fail(run, job.progress, message))
            return FAILED
        own = await write_persistently(lambda: self._queue.end_cancelled(run, job.progress))
        return CANCELLED if own else TAKEN_OVER

    async def _publish(self, job: Job, policy: NewPolicy) -> bool:
        attributes = {semconv.POLICY_ID: policy.policy_id, semconv.POLICY_CHANNEL: job.run.request.channel}
        with _tracer.start_as_current_span(semconv.SPAN_PUBLISH_POLICY, attributes=attributes):
            traceparent = current_traceparent()
            published = await write_persistently(
                lambda: self._queue.succeed(job.run, job.progress, policy, traceparent)
            )
        if published:
            _published.add(1)
        return published

    async def _report(self, job: Job) -> None:
        """Store the progress of a run now and then, and stop it when it was cancelled or taken over elsewhere."""
        while not job.stop.is_set():
            await asyncio.sleep(self._progress_s)
            try:
                if not await self._queue.save_progress(job.run, job.progress):
                    job.stop.set()
            except Gr4adError as error:
                log.warning("progress not stored", run_id=job.run.run_id, error=error.message)
