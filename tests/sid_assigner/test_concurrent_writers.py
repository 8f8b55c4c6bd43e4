"""Many writers at a time, with repeats: no two ads share a SID, none moves, no half batch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from gr4ad.sid.v1 import sid_pb2
from gr4ad_core.sid.codebook import Codebook
from sid_assigner.ads import make_ad
from sid_assigner.batch_creator import ATTEMPTS
from sid_assigner.settings import SidAssignerSettings
from sqlalchemy import text

from tests.sid_assigner.suite import Suite, make_ads, run_suite

BATCHES = 24
SIZE = 10


def alike(first: int, size: int) -> list[sid_pb2.Ad]:
    """Ads of one creative and account: all want the same few SIDs."""
    return [
        sid_pb2.Ad(ad_id=f"alike-{number}", title="red lipstick", brand="Rouge", advertiser_id="account")
        for number in range(first, first + size)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_concurrent_writers_never_share_move_or_halve(suite: Suite, seed: int) -> None:
    chance = random.Random(seed)
    requests = {
        f"batch-{number}": alike(number * SIZE, SIZE) if chance.random() < 0.7 else make_ads(SIZE, first=number * SIZE)
        for number in range(BATCHES)
    }
    # Every batch is sent two or three times, at times of its own: a client that repeats what it was not told about.
    calls = [request_id for request_id in requests for _ in range(chance.randint(2, 3))]
    chance.shuffle(calls)
    answers: dict[str, list[sid_pb2.BatchCreateAdSidsResponse]] = {request_id: [] for request_id in requests}

    async def send(servers: list[Suite], request_id: str) -> None:
        await asyncio.sleep(chance.random() * 0.3)
        answers[request_id].append(await chance.choice(servers).create(request_id, requests[request_id]))

    async def activate() -> None:
        await asyncio.sleep(0.1)
        await suite.activate("other")

    async with run_suite(suite.settings, suite.codebooks) as twin:  # a second server on the same database
        await asyncio.gather(activate(), *(send([suite, twin], request_id) for request_id in calls))

    for request_id, ads in requests.items():
        first, *others = answers[request_id]
        assert all(other == first for other in others)
        assert [ad_sid.ad_id for ad_sid in first.ad_sids] == [ad.ad_id for ad in ads]
    async with suite.database.session() as session:
        rows = (
            await session.execute(text("SELECT codebook_id, ad_id, semantic_codes, business_code FROM sid.ad_sid"))
        ).all()
        seqs = list(await session.scalars(text("SELECT seq FROM sid.catalog_change ORDER BY seq")))
    stored = {(row.codebook_id, row.ad_id): (*row.semantic_codes, row.business_code) for row in rows}
    assert len(stored) == 2 * BATCHES * SIZE  # every ad under both codebooks, whichever came first
    assert len({(codebook_id, sid) for (codebook_id, _), sid in stored.items()}) == len(stored)
    assert seqs == list(range(1, BATCHES * SIZE + 1))
    for told in answers.values():
        for ad_sid in told[0].ad_sids:
            assert stored[ad_sid.codebook_id, ad_sid.ad_id] == tuple(ad_sid.sid.codes)


async def test_batches_that_share_an_ad_exclude_each_other(suite: Suite) -> None:
    batches = [[*make_ads(5, first=10 * number), sid_pb2.Ad(ad_id="shared", title="one ad")] for number in range(6)]
    outcomes = await asyncio.gather(
        *(suite.create(f"share-{number}", ads) for number, ads in enumerate(batches)), return_exceptions=True
    )
    winners = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
    assert len(winners) == 1
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, grpc.aio.AioRpcError)
            assert outcome.code() == grpc.StatusCode.ALREADY_EXISTS
            assert "ads[5].ad_id: 'shared': the ad exists" in (outcome.details() or "")
    async with suite.database.session() as session:
        known = set(await session.scalars(text("SELECT ad_id FROM sid.ad")))
    assert known == {ad.ad_id for ad in batches[winners[0]]}


async def test_a_cancelled_call_leaves_all_or_nothing(suite: Suite) -> None:
    for turn in range(12):
        ads = make_ads(40, first=100 * turn)
        call = suite.create(f"cancelled-{turn}", ads)
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0.004 * turn)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        created = await suite.create(f"cancelled-{turn}", ads)  # the repeat finds it made or makes it
        assert len(created.ad_sids) == len(ads)
    async with suite.database.session() as session:
        counts = (
            await session.execute(
                text(
                    "SELECT (SELECT count(*) FROM sid.ad), (SELECT count(*) FROM sid.ad_sid), "
                    "(SELECT count(*) FROM sid.catalog_change), (SELECT seq FROM sid.feed_head)"
                )
            )
        ).one()
    assert tuple(counts) == (480, 480, 480, 480)


async def test_a_sid_taken_by_a_writer_that_knows_no_lock_is_not_given_again(suite: Suite) -> None:
    await suite.create("first", alike(0, 1))
    wanted = suite.codebooks["small"]
    ad = make_ad(ad_id="alike-1", title="red lipstick", brand="Rouge", advertiser_id="account")
    vectors = wanted.encode_ads([ad.content])
    first = (await suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(ad_id="alike-0"))).ad_sid.sid.codes
    codes = wanted.assign(vectors, [ad.signals], lambda prefix: {first[-1]} if prefix == tuple(first[:-1]) else set())
    *semantic_codes, business_code = codes[0].tolist()
    async with suite.database.session() as session:
        await session.execute(
            text(
                "INSERT INTO sid.ad VALUES "
                "('thief', '', '', '{}', '', 'x', 'product', 'click', 0, 'active', NULL, now(), now())"
            )
        )
        await session.execute(
            text("INSERT INTO sid.ad_sid VALUES ('small', 'thief', :semantic_codes, :business_code)"),
            {"semantic_codes": semantic_codes, "business_code": business_code},
        )
        # It sees nothing of this transaction, wants the same SID, and waits for its outcome.
        creating = asyncio.ensure_future(suite.create("second", alike(1, 1)))
        await asyncio.sleep(0.3)
        assert not creating.done()
    created = await creating
    assert list(created.ad_sids[0].sid.codes[:-1]) == semantic_codes
    assert created.ad_sids[0].sid.codes[-1] not in (business_code, first[-1])


async def test_a_batch_that_always_collides_is_aborted(suite: Suite) -> None:
    async with suite.database.session() as session:
        await session.execute(text("CREATE SEQUENCE sid.tries"))
        await session.execute(
            text(
                "CREATE FUNCTION sid.collide() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM nextval('sid.tries'); RAISE 'deadlock' USING ERRCODE = '40P01'; END $$"
            )
        )
        await session.execute(
            text("CREATE TRIGGER collide BEFORE INSERT ON sid.batch FOR EACH ROW EXECUTE FUNCTION sid.collide()")
        )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.create("unlucky", make_ads(2))
    assert refused.value.code() == grpc.StatusCode.ABORTED
    assert "request_id: 'unlucky': other writers were faster, send the batch again" in (refused.value.details() or "")
    async with suite.database.session() as session:
        assert await session.scalar(text("SELECT last_value FROM sid.tries")) == ATTEMPTS
        assert await session.scalar(text("SELECT count(*) FROM sid.ad")) == 0


async def test_more_batches_than_may_wait_are_refused_and_may_be_sent_again(
    settings: SidAssignerSettings, codebook_store: tuple[Path, Mapping[str, Codebook]]
) -> None:
    few = settings.model_copy(update={"concurrent_batches": 1, "waiting_batches": 1})
    async with run_suite(few, codebook_store[1]) as suite:
        await suite.activate("small")
        outcomes = await asyncio.gather(
            *(suite.create(f"batch-{number}", make_ads(40, first=40 * number)) for number in range(8)),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert 0 < len(refused) <= 6
        for error in refused:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "queue: 2 batches under way: send the batch again after a back-off" in (error.details() or "")
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, grpc.aio.AioRpcError):
                await suite.create(f"batch-{number}", make_ads(40, first=40 * number))
        async with suite.database.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM sid.ad_sid")) == 320
