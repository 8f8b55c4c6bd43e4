"""Training runs as callers see them: created, looked up, listed, cancelled."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from gr4ad.training.v1 import training_pb2
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import AlreadyExistsError, NotFoundError
from sqlalchemy import case, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import defer

from rspo_trainer.models import CANCELLED, QUEUED, RUNNING, TrainingRunRow
from rspo_trainer.training_run import Run, read_run, run_of, select_runs


class RunStore:
    """Reads and writes training runs."""

    def __init__(self, database: Database) -> None:
        """Use the tables in `database`."""
        self._database = database

    async def create(self, request: training_pb2.CreateTrainingRunRequest, traceparent: str) -> Run:
        """Queue a run, or return the one that the same request queued before.

        Raises:
            AlreadyExistsError: Its request_id was used for another request.
        """
        row = {
            "run_id": f"run-{uuid.uuid4().hex[:16]}",
            "request_id": request.request_id,
            "request": request.SerializeToString(deterministic=True),
            "traceparent": traceparent,
            "state": QUEUED,
            "cancel_requested": False,
            "attempt": 0,
            "crashes": 0,
            "step": 0,
            "total_steps": 0,
            "loss_steps": [],
            "loss_values": [],
            "metrics": {},
            "error": "",
            "cursor": 0,
            "checkpoint": "",
            "create_time": datetime.now(UTC),
        }
        add = insert(TrainingRunRow).values(row).on_conflict_do_nothing(index_elements=[TrainingRunRow.request_id])
        async with self._database.session() as session:
            await session.execute(add)
            run = await read_run(session, TrainingRunRow.request_id == request.request_id)
        if run is None or run.request != request:
            remedy = "was used for another run: send each run with a request_id of its own"
            raise AlreadyExistsError("request_id", repr(request.request_id), remedy)
        return run

    async def get(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            NotFoundError: There is no such run.
        """
        async with self._database.session() as session:
            return _found(await read_run(session, TrainingRunRow.run_id == run_id), run_id)

    async def page(self, before: int | None, limit: int) -> list[Run]:
        """Return up to `limit` runs with a number below `before`, the newest first, without their loss curves."""
        columns = select_runs().options(defer(TrainingRunRow.loss_steps), defer(TrainingRunRow.loss_values))
        statement = columns.order_by(TrainingRunRow.number.desc()).limit(limit)
        if before is not None:
            statement = statement.where(TrainingRunRow.number < before)
        async with self._database.session() as session:
            return [run_of(*row, with_losses=False) for row in await session.execute(statement)]

    async def cancel(self, run_id: str) -> Run:
        """Cancel a queued run at once, ask a running one to stop, and leave one that has ended as it is.

        Raises:
            NotFoundError: There is no such run.
        """
        queued = TrainingRunRow.state == QUEUED
        async with self._database.session() as session:
            await session.execute(
                update(TrainingRunRow)
                .where(TrainingRunRow.run_id == run_id, TrainingRunRow.state.in_([QUEUED, RUNNING]))
                .values(
                    cancel_requested=True,
                    state=case((queued, CANCELLED), else_=TrainingRunRow.state),
                    end_time=case((queued, datetime.now(UTC)), else_=TrainingRunRow.end_time),
                )
            )
            return _found(await read_run(session, TrainingRunRow.run_id == run_id), run_id)


def _found(run: Run | None, run_id: str) -> Run:
    if run is None:
        raise NotFoundError("run_id", repr(run_id), "give one that `gr4ad train --list` shows")
    return run
