"""Published policies, the channels they are current in, and the history of that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import FailedPreconditionError, NotFoundError
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

    async def roll_back(self, channel: str, expected_policy_id: str, traceparent: str) -> Policy:
        """Make the policy current again that was so before a channel's current one; return it.

        Args:
            channel: The channel.
            expected_policy_id: The policy to roll back; empty for whatever is current. Where the channel's latest
                change has rolled it back already, nothing happens: so a repeated call is safe.
            traceparent: Of the call.

        Raises:
            FailedPreconditionError: There is no earlier policy, or another one than the expected one is current.
        """
        async with self._database.session() as session:
            policy_id = await _roll_back(session, channel, expected_policy_id, traceparent)
            row = _found(await session.get(PolicyRow, policy_id), policy_id)
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
    if seq is not None:
        await _log_activation(session, channel, seq, policy_id, seq - 1, traceparent)


async def _roll_back(session: AsyncSession, channel: str, expected_policy_id: str, traceparent: str) -> str:
    row = await session.scalar(select(ChannelRow).where(ChannelRow.channel == channel).with_for_update())
    if row is None:
        remedy = f"it has no policy: publish one with `gr4ad train --channel {channel}`"
        raise FailedPreconditionError("channel", channel, remedy)
    current = await session.get_one(ActivationRow, (channel, row.seq))
    if expected_policy_id not in ("", current.policy_id):
        rolled_back = current.earlier_seq < current.seq - 1  # an activation has the one before it there
        if (
            rolled_back
            and (await session.get_one(ActivationRow, (channel, row.seq - 1))).policy_id == expected_policy_id
        ):
            return current.policy_id
        remedy = f"{current.policy_id} is current in channel {channel} by now: state that to roll it back"
        raise FailedPreconditionError("expected_policy_id", repr(expected_policy_id), remedy)
    if current.earlier_seq == 0:
        remedy = (
            f"it has no policy before {current.policy_id}: choose another with "
            f"`gr4ad policy activate POLICY --channel {channel}`"
        )
        raise FailedPreconditionError("channel", channel, remedy)
    target = await session.get_one(ActivationRow, (channel, current.earlier_seq))
    row.seq, row.policy_id = row.seq + 1, target.policy_id
    await _log_activation(session, channel, row.seq, target.policy_id, target.earlier_seq, traceparent)
    return target.policy_id


async def _log_activation(
    session: AsyncSession, channel: str, seq: int, policy_id: str, earlier_seq: int, traceparent: str
) -> None:
    session.add(
        ActivationRow(
            channel=channel,
            seq=seq,
            policy_id=policy_id,
            earlier_seq=earlier_seq,
            traceparent=traceparent,
            activate_time=datetime.now(UTC),
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
