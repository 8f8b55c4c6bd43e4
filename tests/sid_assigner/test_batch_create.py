"""New ads: all of a batch or none, defaults, what is refused and how, repeats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from sqlalchemy import text

from tests.sid_assigner.suite import Suite, make_ads

DIM = 16


async def everything(suite: Suite) -> list[Any]:
    """Return all that a refused batch must leave as it was."""
    async with suite.database.session() as session:
        tables = ("ad", "ad_sid", "catalog_change", "feed_head", "batch")
        return [(await session.execute(text(f"SELECT * FROM sid.{name} ORDER BY 1, 2"))).all() for name in tables]


async def test_new_ads_get_distinct_sids_in_order_and_are_found_both_ways(suite: Suite) -> None:
    ads = make_ads(60)
    created = await suite.create("first", ads)
    assert [ad_sid.ad_id for ad_sid in created.ad_sids] == [ad.ad_id for ad in ads]
    assert len({tuple(ad_sid.sid.codes) for ad_sid in created.ad_sids}) == len(ads)
    assert created.catalog_cursor == len(ads)
    for ad_sid in created.ad_sids[:5]:
        by_ad = await suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(ad_id=ad_sid.ad_id))
        by_sid = await suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(sid=ad_sid.sid))
        assert by_ad.ad_sid == ad_sid
        assert by_sid.ad_sid == ad_sid
    found = await suite.stub.BatchGetAdSids(sid_pb2.BatchGetAdSidsRequest(ad_ids=[ad.ad_id for ad in reversed(ads)]))
    assert list(found.ad_sids) == list(reversed(created.ad_sids))


async def test_what_is_not_stated_gets_its_default(suite: Suite) -> None:
    created = await suite.create(
        "defaults",
        [
            sid_pb2.Ad(ad_id="bare", title="a lipstick"),
            sid_pb2.Ad(ad_id="branded", title="a lipstick", brand="Rouge"),
            sid_pb2.Ad(
                ad_id="full",
                title="a game",
                brand="Rouge",
                advertiser_id="account",
                conversion_type=sid_pb2.CONVERSION_TYPE_INSTALL,
                ad_type=sid_pb2.AD_TYPE_EXTERNAL,
                bid_micros=7,
                state=sid_pb2.AD_STATE_PAUSED,
            ),
        ],
    )
    bare, branded, full = created.ad_sids
    assert (bare.advertiser_id, branded.advertiser_id, full.advertiser_id) == ("bare", "Rouge", "account")
    assert (bare.conversion_type, full.conversion_type) == (
        sid_pb2.CONVERSION_TYPE_PURCHASE,
        sid_pb2.CONVERSION_TYPE_INSTALL,
    )
    assert (bare.state, full.state) == (sid_pb2.AD_STATE_ACTIVE, sid_pb2.AD_STATE_PAUSED)
    assert (bare.bid_micros, full.bid_micros) == (0, 7)
    async with suite.database.session() as session:
        stored = {row.ad_id: row.ad_type for row in await session.execute(text("SELECT ad_id, ad_type FROM sid.ad"))}
    assert stored == {"bare": "product", "branded": "product", "full": "external"}


async def test_ads_of_one_creative_share_semantic_codes_and_differ_in_the_business_code(suite: Suite) -> None:
    kinds = [sid_pb2.CONVERSION_TYPE_PURCHASE, sid_pb2.CONVERSION_TYPE_LEAD, sid_pb2.CONVERSION_TYPE_CLICK]
    ads = [
        sid_pb2.Ad(ad_id=f"campaign-{kind}", title="vitamin serum", brand="Glow", conversion_type=kind)
        for kind in kinds
    ]
    sids = [tuple(ad_sid.sid.codes) for ad_sid in (await suite.create("campaigns", ads)).ad_sids]
    assert len({sid[:-1] for sid in sids}) == 1
    assert len({sid[-1] for sid in sids}) == len(kinds)


async def test_a_supplied_vector_is_used_as_it_is(suite: Suite) -> None:
    codebook = suite.codebooks["small"]
    vector = [0.0] * DIM
    vector[3] = -2.5
    created = await suite.create("vector", [sid_pb2.Ad(ad_id="own", title="anything", embedding=vector)])
    expected = codebook.quantise(np.asarray([vector], dtype=np.float32))[0].tolist()
    assert list(created.ad_sids[0].sid.codes[:-1]) == expected


def _vector(ads: list[sid_pb2.Ad], index: int, at: int, number: float) -> None:
    ads[index].embedding.extend([0.5] * DIM)
    ads[index].embedding[at] = number


def _set(index: int, **fields: Any) -> Callable[[list[sid_pb2.Ad]], None]:
    def change(ads: list[sid_pb2.Ad]) -> None:
        for name, value in fields.items():
            setattr(ads[index], name, value)

    return change


INVALID = grpc.StatusCode.INVALID_ARGUMENT
BAD_BATCHES: dict[str, tuple[Callable[[list[sid_pb2.Ad]], Any], grpc.StatusCode, list[str]]] = {
    "not a number": (
        lambda ads: _vector(ads, 3, 7, math.nan),
        INVALID,
        ["ads[3].embedding[7]: NaN: send finite numbers"],
    ),
    "infinite": (lambda ads: _vector(ads, 1, 0, -math.inf), INVALID, ["ads[1].embedding[0]: -infinity: send finite"]),
    "too large": (lambda ads: _vector(ads, 1, 2, 1e30), INVALID, ["ads[1].embedding[2]: 1e+30: send numbers between"]),
    "too short": (
        lambda ads: ads[4].embedding.extend([0.5] * (DIM - 1)),
        INVALID,
        ["ads[4].embedding: 15 numbers: ", "'small' takes 16"],
    ),
    "twice": (_set(5, ad_id="ad-2"), INVALID, ["ads[5].ad_id: 'ad-2' is also ads[2]: send each ad once"]),
    "negative bid": (_set(2, bid_micros=-1), INVALID, ["ads[2].bid_micros", "greater than or equal to 0"]),
    "no id": (_set(2, ad_id=""), INVALID, ["ads[2].ad_id"]),
    "long id": (_set(2, ad_id="x" * 129), INVALID, ["ads[2].ad_id"]),
    "unknown state": (_set(2, state=99), INVALID, ["ads[2].state"]),
    "NUL": (_set(1, title="a\0b"), INVALID, ["ads[1].title: 'a\\x00b': remove the character NUL"]),
    "exists": (
        _set(4, ad_id="known"),
        grpc.StatusCode.ALREADY_EXISTS,
        ["ads[4].ad_id: 'known': the ad exists", "UpdateAd"],
    ),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
async def test_a_batch_with_one_bad_ad_changes_nothing(suite: Suite, name: str) -> None:
    change, code, fragments = BAD_BATCHES[name]
    await suite.create("before", [sid_pb2.Ad(ad_id="known", title="a known ad")])
    before = await everything(suite)
    ads = make_ads(8)
    change(ads)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.create("bad", ads)
    assert refused.value.code() == code
    for fragment in fragments:
        assert fragment in (refused.value.details() or "")
    assert await everything(suite) == before
    await suite.create("bad", make_ads(8))  # the id of a refused batch is free


async def test_no_active_codebook_is_a_failed_precondition(empty_suite: Suite) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await empty_suite.create("early", make_ads(1))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "codebook_id: no codebook is active: fit one with `gr4ad codebook fit`" in refused.value.details()


async def test_without_text_encoder_a_vector_is_demanded(empty_suite: Suite) -> None:
    await empty_suite.activate("vectors-only")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await empty_suite.create("text", make_ads(2))
    assert refused.value.code() == INVALID
    assert "ads[0].embedding: empty: codebook 'vectors-only' has no text encoder, send 16 numbers" in (
        refused.value.details()
    )


async def test_a_repeated_batch_gets_the_first_answer_even_after_updates(suite: Suite) -> None:
    ads = make_ads(10)
    first = await suite.create("repeat", ads)
    await suite.stub.UpdateAd(sid_pb2.UpdateAdRequest(ad_id="ad-3", state=sid_pb2.AD_STATE_PAUSED, bid_micros=5))
    before = await everything(suite)
    assert await suite.create("repeat", ads) == first
    assert await everything(suite) == before


async def test_one_request_id_for_two_batches_is_refused(suite: Suite) -> None:
    await suite.create("once", make_ads(2))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.create("once", make_ads(2, first=2))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert "request_id: 'once': this request_id created other ads, send a new one" in refused.value.details()


async def test_a_full_codebook_is_told_and_changes_nothing(empty_suite: Suite) -> None:
    await empty_suite.activate("tiny")  # 2 · 2 · 4 SIDs
    created = await empty_suite.create("most", make_ads(14))
    before = await everything(empty_suite)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await empty_suite.create("too many", make_ads(3, first=14))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "'tiny'" in refused.value.details()
    assert "fit a codebook with more codes" in refused.value.details()
    assert await everything(empty_suite) == before
    last = await empty_suite.create("the last", make_ads(2, first=14))
    sids = {tuple(ad_sid.sid.codes) for ad_sid in [*created.ad_sids, *last.ad_sids]}
    assert len(sids) == 16


async def test_no_disk_space_for_the_database_is_told_and_changes_nothing(suite: Suite) -> None:
    await suite.create("before", make_ads(3))
    async with suite.database.session() as session:
        # What PostgreSQL raises when it cannot extend a file, raised where the last rows of a batch are written.
        await session.execute(
            text(
                "CREATE FUNCTION sid.no_space() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"
            )
        )
        await session.execute(
            text("CREATE TRIGGER no_space BEFORE INSERT ON sid.batch FOR EACH ROW EXECUTE FUNCTION sid.no_space()")
        )
    before = await everything(suite)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.create("during", make_ads(3, first=3))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "disk" in refused.value.details()
    assert await everything(suite) == before
    async with suite.database.session() as session:
        await session.execute(text("DROP TRIGGER no_space ON sid.batch"))
    await suite.create("during", make_ads(3, first=3))


async def test_a_sid_lookup_names_what_cannot_be_one(suite: Suite) -> None:
    await suite.create("some", make_ads(1))
    cases = {
        (1, 2): "sid.codes: 2 codes: a SID of codebook 'small' has 3 codes",
        (1, 8, 0): "sid.codes[1]: 8: codes of this level of codebook 'small' are below 8",
    }
    for codes, message in cases.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await suite.stub.GetAdSid(sid_pb2.GetAdSidRequest(sid=type_pb2.SemanticId(codes=codes)))
        assert refused.value.code() == INVALID
        assert message in refused.value.details()
