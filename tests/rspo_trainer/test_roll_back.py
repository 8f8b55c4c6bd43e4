"""Roll-backs over real gRPC: how far they go, what a repeated one does, and who else moves the channel meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import aclosing

import grpc
import pytest
from gr4ad.training.v1 import training_pb2
from gr4ad_runtime.db import Database
from gr4ad_runtime.telemetry import context_of
from opentelemetry.context import attach, detach
from rspo_trainer.models import SCHEMA, ActivationRow
from rspo_trainer.policy_store import NewPolicy, PolicyStore
from rspo_trainer.run_queue import RunQueue
from rspo_trainer.run_store import RunStore
from sqlalchemy import select, text

from tests.oracles.channel_history import ChannelHistory
from tests.rspo_trainer.conftest import Trainer
from tests.rspo_trainer.policies import TRACEPARENT, Watcher, activate, publish


async def roll_back(trainer: Trainer, expected: str = "", channel: str = "stable") -> str:
    """Roll a channel back and return what is current then."""
    request = training_pb2.RollBackPolicyRequest(channel=channel, expected_policy_id=expected)
    policy = (await trainer.stub.RollBackPolicy(request)).policy
    assert channel in policy.channels
    return policy.policy.policy_id


async def refusal(trainer: Trainer, expected: str = "", channel: str = "stable") -> str:
    """Roll back in vain and return why."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await roll_back(trainer, expected, channel)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return caught.value.details() or ""


async def log_of(database: Database, channel: str = "stable") -> list[tuple[int, str]]:
    """Return the changes of a channel."""
    statement = (
        select(ActivationRow.seq, ActivationRow.policy_id)
        .where(ActivationRow.channel == channel)
        .order_by(ActivationRow.seq)
    )
    async with database.session() as session:
        return [(seq, policy_id) for seq, policy_id in await session.execute(statement)]


async def test_a_roll_back_is_an_activation_that_watchers_see(trainer: Trainer, database: Database) -> None:
    await publish(database, "one", "two")
    await activate(trainer, "one")
    await activate(trainer, "two")
    async with aclosing(Watcher(trainer)) as watcher:
        assert (await watcher.next()).policy.policy.policy_id == "two"
        token = attach(context_of(TRACEPARENT))
        try:
            assert await roll_back(trainer) == "one"
        finally:
            detach(token)
        seen = await watcher.next()
    assert seen.policy.policy.policy_id == "one"
    assert seen.traceparent.split("-")[1] == TRACEPARENT.split("-")[1]
    assert await log_of(database) == [(1, "one"), (2, "two"), (3, "one")]


async def test_repeated_roll_backs_walk_further_back_and_end_with_a_remedy(
    trainer: Trainer, database: Database
) -> None:
    await publish(database, "one", "two", "three", "four")
    for policy_id in ("one", "two", "three"):
        await activate(trainer, policy_id)
    assert await roll_back(trainer) == "two"
    assert await roll_back(trainer) == "one"
    assert "it has no policy before one: choose another with `gr4ad policy activate" in await refusal(trainer)
    await activate(trainer, "four")
    assert await roll_back(trainer) == "one", "neither two nor three, which were rolled back"
    assert len(await log_of(database)) == 7


async def test_a_channel_without_a_policy_cannot_be_rolled_back(trainer: Trainer, database: Database) -> None:
    await publish(database, "one", "two")
    await activate(trainer, "one", "canary")
    await activate(trainer, "two", "canary")
    assert (
        await refusal(trainer) == "channel: stable: it has no policy: publish one with `gr4ad train --channel stable`"
    )
    assert [policy_id for _, policy_id in await log_of(database, "canary")] == ["one", "two"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await roll_back(trainer, channel="No Channel")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seed", range(4))
async def test_any_mix_of_changes_goes_as_a_list_of_undo_steps_would(
    trainer: Trainer, database: Database, seed: int
) -> None:
    names = ("one", "two", "three")
    await publish(database, *names)
    draw, history = random.Random(seed), ChannelHistory()
    for _ in range(30):
        name = draw.choice(names)
        if draw.random() < 0.5:
            history.activate(name)
            await activate(trainer, name)
        elif history.roll_back():
            assert await roll_back(trainer) == history.current
        else:
            await refusal(trainer)
    before = await log_of(database)
    while history.roll_back():
        assert await roll_back(trainer) == history.current
    await refusal(trainer)
    assert all(earlier[1] != later[1] for earlier, later in itertools.pairwise(before)), (
        "every change changes something"
    )


async def test_a_repeated_roll_back_of_one_policy_counts_once(trainer: Trainer, database: Database) -> None:
    await publish(database, "one", "two", "three")
    for policy_id in ("one", "two", "three"):
        await activate(trainer, policy_id)
    answers = await asyncio.gather(*(roll_back(trainer, "three") for _ in range(8)))
    assert answers == ["two"] * 8
    assert await roll_back(trainer, "three") == "two"
    assert len(await log_of(database)) == 4
    assert await roll_back(trainer, "two") == "one"
    assert await roll_back(trainer, "two") == "one", "though nothing is before it"


async def test_a_roll_back_of_what_is_not_current_any_more_is_refused(trainer: Trainer, database: Database) -> None:
    await publish(database, "one", "two", "three")
    await activate(trainer, "one")
    await activate(trainer, "two")
    await roll_back(trainer, "two")
    await activate(trainer, "three")
    reason = "expected_policy_id: 'two': three is current in channel stable by now: state that to roll it back"
    assert await refusal(trainer, "two") == reason
    assert await refusal(trainer, "one") == reason.replace("'two'", "'one'"), "one is before three, not rolled back"
    assert [policy_id for _, policy_id in await log_of(database)] == ["one", "two", "one", "three"]


@pytest.mark.parametrize("stated", [True, False])
async def test_a_roll_back_beside_a_publication_is_before_or_behind_it(
    trainer: Trainer, database: Database, stated: bool
) -> None:
    await publish(database, "start", *(f"policy-{number}" for number in range(12)))
    history = ChannelHistory()
    for name in ("start", "policy-0"):
        history.activate(name)
        await activate(trainer, name)
    for number in range(1, 12):
        current, name = history.current, f"policy-{number}"
        rolling = asyncio.create_task(roll_back(trainer, current if stated else ""))
        if number % 2:  # let either start first
            await asyncio.sleep(0)
        publication = asyncio.create_task(activate(trainer, name))
        await asyncio.wait([rolling, publication])
        assert publication.exception() is None
        if (
            stated and rolling.exception() is not None
        ):  # the publication was first: what was to go is not current any more
            assert f"{name} is current in channel stable by now" in str(rolling.exception())
            history.activate(name)
        elif rolling.result() == current:  # the publication was first, and was rolled back
            assert not stated
        else:
            assert history.roll_back()
            assert rolling.result() == history.current
            history.activate(name)
        assert (await log_of(database))[-1][1] == history.current
    log = await log_of(database)
    assert [seq for seq, _ in log] == list(range(1, len(log) + 1))


async def test_a_roll_back_waits_for_the_publication_under_way(trainer: Trainer, database: Database) -> None:
    await publish(database, "one", "two", "three")
    await activate(trainer, "one")
    await activate(trainer, "two")
    async with database.session() as session:
        await session.execute(text(f"SELECT * FROM {SCHEMA}.channel FOR UPDATE"))
        publication = asyncio.create_task(activate(trainer, "three"))
        await _waiting(database, 1)
        rolling = asyncio.create_task(roll_back(trainer))
        await _waiting(database, 2)
        assert not rolling.done()
    await publication
    assert await rolling == "two", "three, which was first, is rolled back"
    assert [policy_id for _, policy_id in await log_of(database)] == ["one", "two", "three", "two"]


async def _waiting(database: Database, count: int) -> None:
    blocked = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(10):
        while True:
            async with database.session() as session:
                if await session.scalar(blocked) == count:
                    return
            await asyncio.sleep(0.02)


async def test_a_publication_that_is_repeated_leaves_a_roll_back_in_force(database: Database) -> None:
    """The answer to a publication may be lost: the run then repeats it, while somebody has rolled its policy back."""
    await publish(database, "one")
    policies, queue = PolicyStore(database), RunQueue(database)
    await policies.activate("one", "canary", "")
    source = training_pb2.OnlineSource(policy_id="one")
    request = training_pb2.CreateTrainingRunRequest(request_id="online", online=source, channel="canary")
    await RunStore(database).create(request, "")
    run = await queue.claim()
    assert run is not None
    learned = NewPolicy("learned", "codebook", "0" * 64, "store/learned", {})
    assert await queue.publish(run, learned, "")
    await policies.roll_back("canary", "learned", "")
    assert await queue.publish(run, learned, "")
    assert [policy_id for _, policy_id in await log_of(database, "canary")] == ["one", "learned", "one"]
    later = NewPolicy("later", "codebook", "0" * 64, "store/later", {})
    assert await queue.publish(run, later, "")
    assert (await policies.get("later")).channels == ("canary",)
    assert (await policies.roll_back("canary", "", "")).policy_id == "one"
