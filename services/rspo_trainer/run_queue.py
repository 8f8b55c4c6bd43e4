"""Training runs as the worker sees them: a queue that survives restarts.

    queued ──► running ──► succeeded | failed | cancelled
      ▲           │
      └───────────┘ the process stopped meanwhile; the MAX_CRASHES-th crash in a run ends it as a failure

The attempt number of a run is its fence: what a process writes about a run counts only while the run is still running
in the attempt that this process began.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gr4ad_runtime.db import Database
from sqlalchemy import ColumnElement, Update, case, false, select, update

from rspo_trainer.models import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, PolicyRow, TrainingRunRow
from rspo_trainer.policy_store import NewPolicy, add_policy, make_current
from rspo_trainer.training_run import Run, RunProgress, read_run

MAX_CRASHES = 2
CRASHED = (
    f"the trainer crashed {MAX_CRASHES} times while it ran this: "
    "see its last log lines (out of memory?), then create the run anew"
)


class RunQueue:
    """Hands out runs one after the other and stores what becomes of them."""

    def __init__(self, database: Database) -> None:
        """Use the tables in `database`."""
        self._database = database

    async def recover(self) -> int:
        """Settle runs that an earlier process left running: queue them again, or end them. Return how many."""
        orphaned = update(TrainingRunRow).where(TrainingRunRow.state == RUNNING).returning(TrainingRunRow.run_id)
        last = TrainingRunRow.crashes + 1 >= MAX_CRASHES
        settle = orphaned.values(_back_to_queue(last) | {"crashes": TrainingRunRow.crashes + 1})
        async with self._database.session() as session:
            return len((await session.execute(settle)).all())

    async def claim(self) -> Run | None:
        """Begin the run that has waited longest; None if none waits."""
        waiting = (
            select(TrainingRunRow.run_id)
            .where(TrainingRunRow.state == QUEUED)
            .order_by(TrainingRunRow.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        begin = (
            update(TrainingRunRow)
            .where(TrainingRunRow.run_id == waiting)
            .values(state=RUNNING, attempt=TrainingRunRow.attempt + 1)
            .returning(TrainingRunRow.run_id)
        )
        async with self._database.session() as session:
            run_id = await session.scalar(begin)
            return None if run_id is None else await read_run(session, TrainingRunRow.run_id == run_id)

    async def save_progress(self, run: Run, progress: RunProgress) -> bool:
        """Store how far a run is; return whether it should go on: not if it was cancelled or taken over elsewhere."""
        statement = _fenced(run).values(_progress_values(progress)).returning(TrainingRunRow.cancel_requested)
        async with self._database.session() as session:
            return (await session.scalar(statement)) is False

    async def save_checkpoint(self, run: Run, progress: RunProgress, checkpoint: str) -> bool:
        """Keep where an online run goes on; return False, and keep nothing, if it is not this process's any more.

        What went before is safe: a crash from now on is a first one again.
        """
        values = {
            **_progress_values(progress),
            "checkpoint": checkpoint,
            "cursor": progress.cursor,
            "metrics": progress.metrics,
            "crashes": 0,
        }
        return await self._settle(run, values)

    async def publish(self, run: Run, policy: NewPolicy, traceparent: str) -> bool:
        """Publish a policy of a run that goes on, to its channel.

        Repeating the call is safe: a policy that is known became current with that; it may have been rolled back since.

        Returns:
            Whether it is published: not if the run was cancelled or lost meanwhile.
        """
        own = (TrainingRunRow.run_id == run.run_id, TrainingRunRow.attempt == run.attempt)
        state = select(TrainingRunRow.state, TrainingRunRow.cancel_requested).where(*own).with_for_update()
        async with self._database.session() as session:
            row = (await session.execute(state)).one_or_none()
            if row is None or row.state != RUNNING or row.cancel_requested:
                return False
            if await session.get(PolicyRow, policy.policy_id) is None:
                await add_policy(session, policy)
                await make_current(session, policy.policy_id, run.request.channel, traceparent)
                await session.execute(_fenced(run).values(policy_id=policy.policy_id))
        return True

    async def give_back(self, run: Run) -> None:
        """Put a run back into the queue that a stop of the service has interrupted."""
        await self._settle(run, _back_to_queue(false()))

    async def fail(self, run: Run, progress: RunProgress, error: str) -> None:
        """End a run as failed."""
        end = {"state": FAILED, "error": error, "end_time": datetime.now(UTC)}
        await self._settle(run, end | _progress_values(progress))

    async def end_cancelled(self, run: Run, progress: RunProgress) -> bool:
        """End a run as cancelled; return False if it was lost to another process instead."""
        end = {"state": CANCELLED, "end_time": datetime.now(UTC)}
        return await self._settle(run, end | _progress_values(progress))

    async def succeed(self, run: Run, progress: RunProgress, policy: NewPolicy, traceparent: str) -> bool:
        """End a run and publish its policy in one transaction.

        Repeating the call after a lost connection is safe.

        Returns:
            Whether it is published: not if the run was cancelled or lost meanwhile.
        """
        own = (TrainingRunRow.run_id == run.run_id, TrainingRunRow.attempt == run.attempt)
        state = select(TrainingRunRow.state, TrainingRunRow.cancel_requested).where(*own).with_for_update()
        async with self._database.session() as session:
            row = (await session.execute(state)).one_or_none()
            if row is not None and row.state == SUCCEEDED:
                return True
            if row is None or row.state != RUNNING or row.cancel_requested:
                return False
            await add_policy(session, policy)
            if run.request.channel:
                await make_current(session, policy.policy_id, run.request.channel, traceparent)
            await session.execute(
                _fenced(run).values(
                    state=SUCCEEDED,
                    metrics=policy.metrics,
                    policy_id=policy.policy_id,
                    end_time=datetime.now(UTC),
                    **_progress_values(progress),
                )
            )
        return True

    async def _settle(self, run: Run, values: dict[str, Any]) -> bool:
        statement = _fenced(run).values(values).returning(TrainingRunRow.run_id)
        async with self._database.session() as session:
            return await session.scalar(statement) is not None


def _fenced(run: Run) -> Update:
    return update(TrainingRunRow).where(
        TrainingRunRow.run_id == run.run_id, TrainingRunRow.attempt == run.attempt, TrainingRunRow.state == RUNNING
    )


def _back_to_queue(fails: ColumnElement[bool]) -> dict[str, Any]:
    """Return the values that put a run back into the queue, from where it starts anew; or end it, if it has to."""
    cancelled = TrainingRunRow.cancel_requested
    return {
        "state": case((cancelled, CANCELLED), (fails, FAILED), else_=QUEUED),
        "error": case((fails & ~cancelled, CRASHED), else_=""),
        "end_time": case((fails | cancelled, datetime.now(UTC)), else_=None),
        **_progress_values(RunProgress()),
    }


def _progress_values(progress: RunProgress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss_steps": [step for step, _ in progress.losses],
        "loss_values": [loss for _, loss in progress.losses],
    }
