"""Published policies, the channels they are current in, and the history of that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import NotFoundError
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from rspo_trainer.models import ActivationRow, ChannelRow, PolicyRow

NOTIFY_CHANNEL = "training_activation"


@dataclass(frozen=True, slots=True)
class Policy:
    """A published policy.

    Attributes:
        number: Order of publication.
        policy_id: Its name.
        codebook_id: Codebook whose SIDs it writes.
        sha256: Of its weights file.
        uri: Its folder in the artifact store.
        metrics: Held-out figures.
        channels: Channels whose current policy it is, by name.
        create_time: When it was published.
    """

    number: int
    policy_id: str
    codebook_id: str
    sha256: str
    uri: str
    metrics: dict[str, float]
    channels: tuple[str, ...]
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Activation:
    """A policy became current in a channel: the `seq`-th time that the channel changed."""

    seq: int
    policy: Policy
    traceparent: str


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """A policy whose folder is in the artifact store, about to be made known."""

    policy_id: str
    codebook_id: str
    sha256: str
    uri: str
    metrics: dict[str, float]


class PolicyStore:
    """Reads and writes policies and channels."""

    def __init__(self, database: Database) -> None:
        """Use the tables in `database`."""
        self._database = database

    async def page(self, before: int | None, limit: int) -> list[Policy]:
        """Return up to `limit` policies with a number below `before`, the newest first."""
        statement = select(PolicyRow).order_by(PolicyRow.number.desc()).limit(limit)
        if before is not None:
            statement = statement.where(PolicyRow.number < before)
        async with self._database.session() as session:
            return await _with_channels(session, (await session.scalars(statement)).all())

    async def get(self, policy_id: str) -> Policy:
        """Return a policy.

        Raises:
            NotFoundError: No such policy was published.
        """
        async with self._database.session() as session:
            row = await session.get(PolicyRow, policy_id)
            return (await _with_channels(session, [_found(row, policy_id)]))[0]

    async def activate(self, policy_id: str, channel: str, traceparent: str) -> Policy:
        """Make a policy the current one of a channel; nothing happens where it is that already.

        Raises:
            NotFoundError: No such policy was published.
        """
        async with self._database.session() as session:
            row = _found(await session.get(PolicyRow, policy_id), policy_id)
            await make_current(session, policy_id, channel, traceparent)
            return (await _with_channels(session, [row]))[0]

    async def activations_after(self, channel: str, seq: int) -> list[Activation]:
        """Return a channel's changes after the `seq`-th in order; for `seq` 0 only the latest, which is in force."""
        statement = (
            select(ActivationRow, PolicyRow)
            .join(PolicyRow, PolicyRow.policy_id == ActivationRow.policy_id)
            .where(ActivationRow.channel == channel, ActivationRow.seq > seq)
        )
        if seq == 0:
            statement = statement.order_by(ActivationRow.seq.desc()).limit(1)
        else:
            statement = statement.order_by(ActivationRow.seq)
        async with self._database.session() as session:
            rows = (await session.execute(statement)).all()
            policies = await _with_channels(session, [row.PolicyRow for row in rows])
        return [
            Activation(row.ActivationRow.seq, policy, row.ActivationRow.traceparent)
            for row, policy in zip(rows, policies, strict=True)
        ]


def _found(row: PolicyRow | None, policy_id: str) -> PolicyRow:
    if row is None:
        raise NotFoundError("policy_id", repr(policy_id), "give one that `gr4ad policy list` shows")
    return row


async def add_policy(session: AsyncSession, policy: NewPolicy) -> None:
    """Make a policy known, as part of the caller's transaction."""
    session.add(
        PolicyRow(
            policy_id=policy.policy_id,
            codebook_id=policy.codebook_id,
            sha256=policy.sha256,
            uri=policy.uri,
            metrics=policy.metrics,
            create_time=datetime.now(UTC),
        )
    )
    await session.flush()


async def make_current(session: AsyncSession, policy_id: str, channel: str, traceparent: str) -> None:
    """Make a policy the current one of a channel, as part of the caller's transaction; watchers wake at its commit."""
    # One statement for both cases: the row comes back, and stays locked, only if the channel is new or changes.
    change = (
        insert(ChannelRow)
        .values(channel=channel, seq=1, policy_id=policy_id)
        .on_conflict_do_update(
            index_elements=[ChannelRow.channel],
            set_={"seq": ChannelRow.seq + 1, "policy_id": policy_id},
            where=ChannelRow.policy_id != policy_id,
        )
        .returning(ChannelRow.seq)
    )
    seq = await session.scalar(change)
    if seq is None:
        return
    session.add(
        ActivationRow(
            channel=channel, seq=seq, policy_id=policy_id, traceparent=traceparent, activate_time=datetime.now(UTC)
        )
    )
    await session.execute(select(func.pg_notify(NOTIFY_CHANNEL, channel)))


async def _with_channels(session: AsyncSession, rows: Sequence[PolicyRow]) -> list[Policy]:
    current = await session.execute(
        select(ChannelRow.policy_id, ChannelRow.channel)
        .where(ChannelRow.policy_id.in_([row.policy_id for row in rows]))
        .order_by(ChannelRow.channel)
    )
    channels: defaultdict[str, list[str]] = defaultdict(list)
    for policy_id, channel in current:
        channels[policy_id].append(channel)
    return [
        Policy(
            number=row.number,
            policy_id=row.policy_id,
            codebook_id=row.codebook_id,
            sha256=row.sha256,
            uri=row.uri,
            metrics=row.metrics,
            channels=tuple(channels[row.policy_id]),
            create_time=row.create_time,
        )
        for row in rows
    ]
