"""Look-ups and updates: what is unknown is named, and every look-up uses an index."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.db import Database
from sid_assigner.ad_lookup import by_ads, by_sid, listed
from sid_assigner.assignment import TAKEN
from sid_assigner.feed_reader import changes_after
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from tests.sid_assigner.suite import Suite, make_ads

NOT_FOUND = grpc.StatusCode.NOT_FOUND
CREATE_FIRST = "no such ad, create it with BatchCreateAdSids first"


async def test_an_unknown_ad_is_named(suite: Suite) -> None:
    await suite.create("some", make_ads(3))
    calls = {
        f"ad_id: 'who': {CREATE_FIRST}": [
            suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(ad_id="who")),
            suite.stub.UpdateAd(sid_pb2.UpdateAdRequest(ad_id="who", bid_micros=1)),
        ],
        f"ad_id: 'a\\x00': {CREATE_FIRST}": [
            suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(ad_id="a\0")),
            suite.stub.UpdateAd(sid_pb2.UpdateAdRequest(ad_id="a\0", bid_micros=1)),
        ],
        f"ad_ids[1]: 'who': {CREATE_FIRST}": [
            suite.stub.BatchGetAdSids(sid_pb2.BatchGetAdSidsRequest(ad_ids=["ad-0", "who", "nor-this"])),
        ],
        "codebook_id: 'none': registered: 'small'": [
            suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(ad_id="ad-0", codebook_id="none")),
            suite.stub.BatchGetAdSids(sid_pb2.BatchGetAdSidsRequest(ad_ids=["ad-0"], codebook_id="none")),
        ],
    }
    for message, attempts in calls.items():
        for attempt in attempts:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await attempt
            assert refused.value.code() == NOT_FOUND
            assert message in refused.value.details()


async def test_a_sid_that_no_ad_has_is_not_found(suite: Suite) -> None:
    taken = {tuple(ad_sid.sid.codes) for ad_sid in (await suite.create("some", make_ads(3))).ad_sids}
    free = next(codes for codes in [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)] if codes not in taken)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(sid=type_pb2.SemanticId(codes=free)))
    assert refused.value.code() == NOT_FOUND
    assert f"sid.codes: {list(free)}: no ad of codebook 'small' has it" in refused.value.details()


async def test_an_ad_asked_for_twice_is_answered_twice(suite: Suite) -> None:
    await suite.create("some", make_ads(2))
    found = await suite.stub.BatchGetAdSids(sid_pb2.BatchGetAdSidsRequest(ad_ids=["ad-1", "ad-0", "ad-1"]))
    assert [ad_sid.ad_id for ad_sid in found.ad_sids] == ["ad-1", "ad-0", "ad-1"]


async def test_an_update_that_states_nothing_or_a_negative_bid_is_refused(suite: Suite) -> None:
    await suite.create("some", make_ads(1))
    cases = {
        "set the one to change": sid_pb2.UpdateAdRequest(ad_id="ad-0"),
        "bid_micros": sid_pb2.UpdateAdRequest(ad_id="ad-0", bid_micros=-5),
        "state": sid_pb2.UpdateAdRequest(ad_id="ad-0", state=sid_pb2.AD_STATE_UNSPECIFIED),
    }
    for fragment, request in cases.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await suite.stub.UpdateAd(request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert fragment in refused.value.details()


# Without the checks of foreign keys, and without ads for most SIDs: a large store in a second.
FILL = """
SET LOCAL session_replication_role = replica;
INSERT INTO sid.codebook SELECT c, '{64,64,64}', 8, '', now(), 'standby' FROM (VALUES ('a'), ('b')) codebooks (c);
INSERT INTO sid.ad SELECT 'ad-' || n, 'title ' || n, '', '{}', repeat('x', 200), 'account-' || n % 100, 'product',
    'purchase', 1, CASE WHEN n % 50 = 0 THEN 'paused' ELSE 'active' END, NULL, now(), now()
    FROM generate_series(1, 10000) n;
INSERT INTO sid.ad_sid SELECT c, 'ad-' || n, ARRAY[n % 256, n / 256], n % 64
    FROM generate_series(1, 40000) n, (VALUES ('a'), ('b')) codebooks (c);
INSERT INTO sid.catalog_change SELECT n, 'ad-' || n, 'active', 1, 'account', 'purchase', '', now()
    FROM generate_series(1, 10000) n;
"""


async def test_look_ups_use_indexes(database: Database) -> None:
    async with database.session() as session:
        for statement in FILL.strip().split(";\n"):
            await session.execute(text(statement.rstrip(";")))
        await session.execute(text("ANALYZE"))
    prefixes = json.dumps([{"codes": [number, number]} for number in range(40)])
    statements: dict[str, tuple[Any, dict[str, Any]]] = {
        "by ads": (by_ads("a", [f"ad-{number}" for number in range(1, 60)]), {}),
        "by SID": (by_sid("a", (5, 6, 1)), {}),
        "taken codes": (TAKEN, {"codebook_id": "a", "prefixes": prefixes}),
        "changes": (changes_after("a", 9_900, 50), {}),
        "ads": (listed("a", advertiser_id="", state="", after="ad-5", limit=50), {}),
        "ads of an account": (listed("a", advertiser_id="account-7", state="", after="ad-5", limit=50), {}),
        "ads in a state": (listed("a", advertiser_id="", state="paused", after="ad-5", limit=50), {}),
    }
    for name, (statement, parameters) in statements.items():
        compiled = statement.compile(
            dialect=postgresql.psycopg.dialect(),  # type: ignore[no-untyped-call]
            compile_kwargs={"render_postcompile": True},
        )
        values = {**compiled.params, **parameters}
        async with database.session() as session:
            connection = await session.connection()
            result = await connection.exec_driver_sql(f"EXPLAIN {compiled}", values)
            plan = "\n".join(row[0] for row in result)
        assert "Seq Scan" not in plan, f"{name}:\n{plan}"
        assert "Index" in plan, f"{name}:\n{plan}"


async def pages(suite: Suite, size: int, **question: Any) -> list[list[str]]:
    """Ask for all pages of a question."""
    request, found = sid_pb2.ListAdSidsRequest(page_size=size, **question), []
    while True:
        page = await suite.stub.ListAdSids(request)
        found.append([ad_sid.ad_id for ad_sid in page.ad_sids])
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def everything_of(suite: Suite, **question: Any) -> list[str]:
    return [ad_id for page in await pages(suite, 2, **question) for ad_id in page]


async def test_ads_are_listed_page_by_page(suite: Suite) -> None:
    await suite.create("some", make_ads(25))
    paused = {f"ad-{number}" for number in (3, 8, 13)}  # all of brand 3
    for ad_id in paused:
        await suite.stub.UpdateAd(sid_pb2.UpdateAdRequest(ad_id=ad_id, state=sid_pb2.AD_STATE_PAUSED))
    everything = sorted(f"ad-{number}" for number in range(25))
    for size in (1, 7, 25, 1000):
        found = await pages(suite, size)
        assert [ad_id for page in found for ad_id in page] == everything
        assert all(len(page) == size for page in found[:-1])
    of_brand = sorted(f"ad-{number}" for number in range(25) if number % 5 == 3)
    assert await everything_of(suite, advertiser_id="brand 3") == of_brand
    assert await everything_of(suite, state=sid_pb2.AD_STATE_PAUSED) == sorted(paused)
    assert await everything_of(suite, advertiser_id="brand 3", state=sid_pb2.AD_STATE_ACTIVE) == [
        ad_id for ad_id in of_brand if ad_id not in paused
    ]
    assert await pages(suite, 2, advertiser_id="nobody") == [[]]
    assert len((await suite.stub.ListAdSids(sid_pb2.ListAdSidsRequest())).ad_sids) == 25


async def test_what_comes_between_two_pages_moves_nothing_else(suite: Suite) -> None:
    await suite.create("some", make_ads(10))
    first = await suite.stub.ListAdSids(sid_pb2.ListAdSidsRequest(page_size=5))
    await suite.create("more", make_ads(10, first=100))
    second = await suite.stub.ListAdSids(sid_pb2.ListAdSidsRequest(page_size=1000, page_token=first.next_page_token))
    ids = [ad_sid.ad_id for page in (first, second) for ad_sid in page.ad_sids]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= {f"ad-{number}" for number in range(10)}


async def test_a_token_that_is_none_is_refused(suite: Suite) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="page_token: '%': give the next_page_token of the answer before"):
        await suite.stub.ListAdSids(sid_pb2.ListAdSidsRequest(page_token="%"))
