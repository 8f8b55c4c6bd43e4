"""A training run as the service handles it, and how it is read from the database."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from gr4ad.training.v1 import training_pb2
from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from rspo_trainer.models import PolicyRow, TrainingRunRow


@dataclass(frozen=True, slots=True)
class Run:
    """A training run.

    Attributes:
        number: Order of creation.
        run_id: Its name.
        request: What was asked for.
        traceparent: Of the call that asked.
        state: One of `models.STATES`.
        attempt: Times it was begun.
        step: Optimiser steps done.
        total_steps: Optimiser steps planned, 0 until known.
        losses: Loss curve, steps done and mean loss since the point before.
        metrics: Held-out figures.
        policy: What it published: policy id, codebook id and sha256; None before.
        error: Why it failed; empty otherwise.
        create_time: When it was created.
        end_time: When it ended; None before.
        cursor: Of an online run, of the reward log; all before it is in the checkpoint.
        checkpoint: Of an online run, name of its state in the artifact store; empty before the first.
    """

    number: int
    run_id: str
    request: training_pb2.CreateTrainingRunRequest
    traceparent: str
    state: str
    attempt: int
    step: int
    total_steps: int
    losses: tuple[tuple[int, float], ...]
    metrics: dict[str, float]
    policy: tuple[str, str, str] | None
    error: str
    create_time: datetime
    end_time: datetime | None
    cursor: int = 0
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is.

    Attributes:
        step: Optimiser steps done.
        total_steps: Optimiser steps planned; 0 where unknown, and for an online run, which has no end.
        losses: Loss curve so far.
        cursor: Of an online run.
        metrics: Of an online run, its figures so far.
    """

    step: int = 0
    total_steps: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    cursor: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def with_metrics(self, metrics: dict[str, float]) -> RunProgress:
        """Return the same with other figures."""
        return replace(self, metrics=metrics)


def select_runs() -> Select[TrainingRunRow, PolicyRow]:
    """Return the query of runs, each with the policy it published."""
    return select(TrainingRunRow, PolicyRow).outerjoin(PolicyRow, PolicyRow.policy_id == TrainingRunRow.policy_id)


async def read_run(session: AsyncSession, condition: ColumnElement[bool]) -> Run | None:
    """Return the one run that the condition is true of, as the transaction sees it now; None if there is none."""
    # Statements may have changed the row behind the session's back.
    statement = select_runs().where(condition).execution_options(populate_existing=True)
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else run_of(*row)


def run_of(row: TrainingRunRow, policy: PolicyRow | None, with_losses: bool = True) -> Run:
    """Return the run in a row of `select_runs`; without its losses where those were not selected."""
    return Run(
        number=row.number,
        run_id=row.run_id,
        request=training_pb2.CreateTrainingRunRequest.FromString(row.request),
        traceparent=row.traceparent,
        state=row.state,
        attempt=row.attempt,
        step=row.step,
        total_steps=row.total_steps,
        losses=tuple(zip(row.loss_steps, row.loss_values, strict=True)) if with_losses else (),
        metrics=row.metrics,
        policy=None if policy is None else (policy.policy_id, policy.codebook_id, policy.sha256),
        error=row.error,
        create_time=row.create_time,
        end_time=row.end_time,
        cursor=row.cursor,
        checkpoint=row.checkpoint,
    )
