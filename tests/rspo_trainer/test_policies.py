"""Policies and channels over real gRPC: activated, rolled back, watched."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import grpc
import pytest
from gr4ad.training.v1 import training_pb2
from gr4ad_runtime.db import Database
from rspo_trainer.models import ActivationRow, ChannelRow
from sqlalchemy import func, select

from tests.plain_channel import plain_channel
from tests.rspo_trainer.conftest import Trainer, running_trainer
from tests.rspo_trainer.policies import TRACEPARENT, Watcher, activate, publish


async def test_activation_moves_a_channel_and_rolls_back(trainer: Trainer, database: Database) -> None:
    await publish(database, "one", "two")
    assert list((await activate(trainer, "one")).channels) == ["stable"]
    assert list((await activate(trainer, "one", "canary")).channels) == ["canary", "stable"]
    assert list((await activate(trainer, "two")).channels) == ["stable"]
    listed = (await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest())).policies
    assert [(p.policy.policy_id, list(p.channels)) for p in listed] == [("two", ["stable"]), ("one", ["canary"])]
    assert list((await activate(trainer, "one")).channels) == ["canary", "stable"]
    assert listed[0].metrics == {"recall": 0.5}


async def test_an_unknown_policy_changes_nothing(trainer: Trainer, database: Database) -> None:
    await publish(database, "one")
    await activate(trainer, "one")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await activate(trainer, "other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "policy_id: 'other'" in (caught.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await activate(trainer, "one", "No Channel")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    listed = (await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest())).policies
    assert [list(p.channels) for p in listed] == [["stable"]]


async def test_a_watcher_sees_the_current_policy_then_every_later_one(trainer: Trainer, database: Database) -> None:
    await publish(database, "one", "two", "three")
    await activate(trainer, "one")
    await activate(trainer, "two")
    async with aclosing(Watcher(trainer)) as watcher:
        first = await watcher.next()
        assert first.policy.policy.policy_id == "two"
        assert first.policy.uri == "store/two"
        assert first.policy.policy.sha256 == "0" * 64
        assert first.traceparent.split("-")[1] == TRACEPARENT.split("-")[1]
        # In one go, so that they meet one wake-up: neither is left out.
        await activate(trainer, "three")
        await activate(trainer, "one")
        assert [(await watcher.next()).policy.policy.policy_id for _ in range(2)] == ["three", "one"]
        # Neither another channel's change nor one that changes nothing is told.
        await activate(trainer, "three", "canary")
        await activate(trainer, "one")
        await watcher.silence(0.8)
        assert watcher.heartbeats >= 1


async def test_a_watcher_of_an_empty_channel_gets_its_first_policy(trainer: Trainer, database: Database) -> None:
    await publish(database, "one")
    async with aclosing(Watcher(trainer, "fresh")) as watcher:
        await watcher.silence(0.5)
    async with aclosing(Watcher(trainer, "fresh")) as watcher:
        waiting = asyncio.ensure_future(watcher.next())
        await asyncio.sleep(0.1)
        await activate(trainer, "one", "fresh")
        assert (await waiting).policy.policy.policy_id == "one"


async def test_a_change_through_another_process_reaches_a_watcher_at_once(
    database_url: str, database: Database, trainer: Trainer
) -> None:
    """Told by notification: the heartbeat, at which the table would be looked at anyway, is far away."""
    await publish(database, "one")
    slow = trainer.settings.model_copy(update={"watch_heartbeat_seconds": 30.0})
    async with running_trainer(slow) as address, plain_channel(address) as channel:
        other = Trainer(type(trainer.stub)(channel), trainer.rewards, trainer.sids, slow, address, trainer.folder)
        async with aclosing(Watcher(other)) as watcher:
            waiting = asyncio.ensure_future(watcher.next())
            await asyncio.sleep(0.5)
            await activate(trainer, "one")
            assert (await asyncio.wait_for(waiting, 2)).policy.policy.policy_id == "one"


async def test_a_stopped_trainer_ends_its_watches_as_unavailable(trainer: Trainer) -> None:
    async with running_trainer(trainer.settings) as address:
        channel = plain_channel(address)
        call = type(trainer.stub)(channel).WatchPolicies(training_pb2.WatchPoliciesRequest(channel="stable"))
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while True:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await channel.close()


async def test_concurrent_activations_are_numbered_without_gaps(trainer: Trainer, database: Database) -> None:
    names = [f"policy-{number}" for number in range(6)]
    await publish(database, *names)
    await asyncio.gather(*(activate(trainer, name) for name in names))
    async with database.session() as session:
        numbers = (await session.scalars(select(ActivationRow.seq).order_by(ActivationRow.seq))).all()
        current = await session.get(ChannelRow, "stable")
        last = await session.scalar(
            select(ActivationRow.policy_id).where(
                ActivationRow.seq == select(func.max(ActivationRow.seq)).scalar_subquery()
            )
        )
    assert list(numbers) == [1, 2, 3, 4, 5, 6]
    assert current is not None
    assert (current.seq, current.policy_id) == (6, last)


async def test_pages_of_policies(trainer: Trainer, database: Database) -> None:
    names = [f"policy-{number}" for number in range(5)]
    await publish(database, *names)
    first = await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest(page_size=5))
    assert first.next_page_token == ""
    first = await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest(page_size=3))
    second = await trainer.stub.ListPolicies(
        training_pb2.ListPoliciesRequest(page_size=3, page_token=first.next_page_token)
    )
    assert second.next_page_token == ""
    assert [p.policy.policy_id for page in (first, second) for p in page.policies] == names[::-1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer.stub.ListTrainingRuns(training_pb2.ListTrainingRunsRequest(page_token=first.next_page_token))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
