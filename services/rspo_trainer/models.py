"""Tables of the schema `training`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "training"

QUEUED = "queued"
RUNNING = "running"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"
STATES = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)

# Ids compare as bytes: the order is the same on every machine, and comparisons are cheap.
Identifier = Text(collation="C")


class Base(DeclarativeBase):
    """Base of the tables."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        },
    )


class PolicyRow(Base):
    """A published policy; its folder in the artifact store is complete before this row exists."""

    __tablename__ = "policy"
    __table_args__ = (UniqueConstraint("number"),)

    policy_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    # Order of publication, for pages.
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    codebook_id: Mapped[str] = mapped_column(Identifier)
    sha256: Mapped[str] = mapped_column(Text)
    uri: Mapped[str] = mapped_column(Text)
    metrics: Mapped[dict[str, float]] = mapped_column(JSONB)
    create_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class TrainingRunRow(Base):
    """A training run."""

    __tablename__ = "training_run"
    __table_args__ = (
        UniqueConstraint("number"),
        UniqueConstraint("request_id"),
        CheckConstraint(f"state IN {STATES}", name="state"),
    )

    run_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    # Order of creation: of the queue, and of pages.
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    request_id: Mapped[str] = mapped_column(Identifier)
    # A serialised gr4ad.training.v1.CreateTrainingRunRequest.
    request: Mapped[bytes] = mapped_column(LargeBinary)
    traceparent: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    cancel_requested: Mapped[bool] = mapped_column(Boolean)
    # Times the run was begun. It is the fence: a process whose attempt is not this one any more has lost the run.
    attempt: Mapped[int] = mapped_column(Integer)
    # Times the process ended without having given the run back.
    crashes: Mapped[int] = mapped_column(Integer)
    step: Mapped[int] = mapped_column(BigInteger)
    total_steps: Mapped[int] = mapped_column(BigInteger)
    loss_steps: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    loss_values: Mapped[list[float]] = mapped_column(ARRAY(Double))
    metrics: Mapped[dict[str, float]] = mapped_column(JSONB)
    policy_id: Mapped[str | None] = mapped_column(Identifier, ForeignKey(PolicyRow.policy_id))
    error: Mapped[str] = mapped_column(Text)
    create_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    end_time: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # Of an online run: everything of the reward log up to the cursor is in the state of this name.
    cursor: Mapped[int] = mapped_column(BigInteger, default=0)
    checkpoint: Mapped[str] = mapped_column(Text, default="")


class ChannelRow(Base):
    """A channel and its current policy. Whoever activates locks this row until commit, so `seq` has no gaps."""

    __tablename__ = "channel"

    channel: Mapped[str] = mapped_column(Identifier, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    policy_id: Mapped[str] = mapped_column(Identifier, ForeignKey(PolicyRow.policy_id))


class ActivationRow(Base):
    """A policy became the current one of a channel."""

    __tablename__ = "activation"

    channel: Mapped[str] = mapped_column(Identifier, ForeignKey(ChannelRow.channel), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    policy_id: Mapped[str] = mapped_column(Identifier, ForeignKey(PolicyRow.policy_id))
    # The activation that a roll-back of this one goes back to; 0 for none. It is the one before, except behind a
    # roll-back, which takes its target's over: nobody comes back to what was rolled back.
    earlier_seq: Mapped[int] = mapped_column(BigInteger)
    traceparent: Mapped[str] = mapped_column(Text)
    activate_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
