"""Training runs as the worker sees them: a queue that survives restarts.

    queued ──► running ──► succeeded | failed | cancelled
      ▲           │
      └───────────┘ the process stopped meanwhile; the last of MAX_ATTEMPTS ends as a failure

The attempt number of a run is its fence: what a process writes about a run counts only while the run is still running
in the attempt that this process began.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gr4ad_runtime.db import Database
from sqlalchemy import Update, case, select, update

from rspo_trainer.models import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, TrainingRunRow
from rspo_trainer.policy_store import NewPolicy, add_policy, make_current
from rspo_trainer.training_run import Run, RunProgress, read_run

MAX_ATTEMPTS = 2
INTERRUPTED = (
    f"the trainer stopped {MAX_ATTEMPTS} times while it ran this: "
    "see its last log lines (out of memory?), then create the run anew"
)


class RunQueue:
    """Hands out runs one after the other and stores what becomes of them."""

    def __init__(self, database: Database) -> None:
        """Use the tables in `database`."""
        self._database = database

    async def recover(self) -> int:
        """Settle runs that an earlier process left running: queue them again, or end them. Return how many."""
        again = TrainingRunRow.attempt < MAX_ATTEMPTS
        wanted = ~TrainingRunRow.cancel_requested
        settle = (
            update(TrainingRunRow)
            .where(TrainingRunRow.state == RUNNING)
            .values(
                state=case((~wanted, CANCELLED), (again, QUEUED), else_=FAILED),
                error=case((wanted & ~again, INTERRUPTED), else_=""),
                end_time=case((wanted & again, None), else_=datetime.now(UTC)),
            )
            .returning(TrainingRunRow.run_id)
        )
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
            .values(
                state=RUNNING,
                attempt=TrainingRunRow.attempt + 1,
                step=0,
                total_steps=0,
                loss_steps=[],
                loss_values=[],
            )
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

    async def give_back(self, run: Run) -> None:
        """Put a run that was interrupted by a stop of the service back into the queue; the attempt does not count."""
        await self._settle(run, state=QUEUED, attempt=run.attempt - 1, step=0, total_steps=0)

    async def fail(self, run: Run, progress: RunProgress, error: str) -> None:
        """End a run as failed."""
        await self._settle(run, state=FAILED, error=error, end_time=datetime.now(UTC), **_progress_values(progress))

    async def end_cancelled(self, run: Run, progress: RunProgress) -> None:
        """End a run as cancelled."""
        await self._settle(run, state=CANCELLED, end_time=datetime.now(UTC), **_progress_values(progress))

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

    async def _settle(self, run: Run, **values: Any) -> None:
        async with self._database.session() as session:
            await session.execute(_fenced(run).values(values))


def _fenced(run: Run) -> Update:
    return update(TrainingRunRow).where(
        TrainingRunRow.run_id == run.run_id, TrainingRunRow.attempt == run.attempt, TrainingRunRow.state == RUNNING
    )


def _progress_values(progress: RunProgress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss_steps": [step for step, _ in progress.losses],
        "loss_values": [loss for _, loss in progress.losses],
    }
