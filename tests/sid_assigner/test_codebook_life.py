"""Codebooks: every ad gets a SID under a new one, and none under an old one moves."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest
from gr4ad.sid.v1 import sid_pb2
from gr4ad_runtime.errors import UnavailableError
from sid_assigner import codebook_life
from sqlalchemy import text

from tests.sid_assigner.suite import Suite, make_ads, run_suite


async def sids(suite: Suite, codebook_id: str, ad_ids: list[str]) -> list[tuple[int, ...]]:
    request = sid_pb2.BatchGetAdSidsRequest(ad_ids=ad_ids, codebook_id=codebook_id)
    return [tuple(ad_sid.sid.codes) for ad_sid in (await suite.stub.BatchGetAdSids(request)).ad_sids]


async def test_a_new_codebook_places_every_ad_and_moves_none(suite: Suite) -> None:
    ads = make_ads(90)
    ad_ids = [ad.ad_id for ad in ads]
    await suite.create("before", ads)
    old = await sids(suite, "small", ad_ids)
    activated = await suite.activate("other")
    assert activated.state == sid_pb2.CODEBOOK_STATE_ACTIVE
    assert list(activated.level_sizes) == [4, 4, 32]
    assert activated.embedding_dim == 8
    assert await sids(suite, "small", ad_ids) == old
    new = await sids(suite, "", ad_ids)
    assert len(set(new)) == len(ads)
    assert (np.max(new, axis=0) < [4, 4, 32]).all()

    after = await suite.create("after", make_ads(4, first=90))
    assert {ad_sid.codebook_id for ad_sid in after.ad_sids} == {"other"}
    assert len(await sids(suite, "small", [ad_sid.ad_id for ad_sid in after.ad_sids])) == 4
    listed = (await suite.stub.ListCodebooks(sid_pb2.ListCodebooksRequest())).codebooks
    assert [(codebook.codebook_id, codebook.state) for codebook in listed] == [
        ("other", sid_pb2.CODEBOOK_STATE_ACTIVE),
        ("small", sid_pb2.CODEBOOK_STATE_STANDBY),
    ]


async def test_activating_again_changes_nothing_and_going_back_moves_nothing(suite: Suite) -> None:
    await suite.create("before", make_ads(20))
    ad_ids = [f"ad-{number}" for number in range(20)]
    first = await suite.activate("other")
    placed = await sids(suite, "other", ad_ids)
    assert await suite.activate("other") == first
    back = await suite.activate("small")
    assert back.state == sid_pb2.CODEBOOK_STATE_ACTIVE
    assert await suite.activate("other") == first
    assert await sids(suite, "other", ad_ids) == placed


@pytest.mark.parametrize(
    ("codebook_id", "code", "message"),
    [
        ("nonesuch", grpc.StatusCode.NOT_FOUND, "codebook_id: 'nonesuch': publish it as codebooks/nonesuch"),
        ("../etc", grpc.StatusCode.INVALID_ARGUMENT, "codebook_id"),
        ("damaged", grpc.StatusCode.DATA_LOSS, "codebook_id: 'damaged': "),
        ("mislabelled", grpc.StatusCode.DATA_LOSS, "codebooks/mislabelled holds codebook 'small'"),
        ("tiny", grpc.StatusCode.RESOURCE_EXHAUSTED, "codebook_id: 'tiny': "),
        (
            "vectors-only",
            grpc.StatusCode.FAILED_PRECONDITION,
            "'vectors-only' has no text encoder, and ad 'ad-0' has no",
        ),
    ],
)
async def test_a_codebook_that_cannot_be_used_changes_nothing(
    suite: Suite, codebook_id: str, code: grpc.StatusCode, message: str
) -> None:
    await suite.create("before", make_ads(20))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.activate(codebook_id)
    assert refused.value.code() == code
    assert message in refused.value.details()
    listed = (await suite.stub.ListCodebooks(sid_pb2.ListCodebooksRequest())).codebooks
    assert [codebook.codebook_id for codebook in listed] == ["small"]
    async with suite.database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM sid.ad_sid")) == 20
    await suite.create("after", make_ads(2, first=20))


async def test_a_registered_codebook_must_stay_what_it_was(suite: Suite) -> None:
    folder = Path(suite.settings.artifact_store) / "codebooks" / "small"
    for file in (Path(suite.settings.artifact_store) / "codebooks" / "other").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["codebook_id"] = "small"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.activate("small")
    assert refused.value.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.DATA_LOSS)
    assert "'small'" in refused.value.details()


async def states(suite: Suite) -> dict[str, str]:
    listed = (await suite.stub.ListCodebooks(sid_pb2.ListCodebooksRequest())).codebooks
    prefix = "CODEBOOK_STATE_"
    return {c.codebook_id: sid_pb2.CodebookState.Name(c.state).removeprefix(prefix).lower() for c in listed}


async def refusal(call: grpc.aio.UnaryUnaryCall[object, object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""


async def test_a_registered_codebook_stands_beside_the_active_one(suite: Suite) -> None:
    await suite.create("before", make_ads(30))
    answer = await suite.stub.RegisterCodebook(sid_pb2.RegisterCodebookRequest(codebook_id="other"))
    assert answer.codebook.state == sid_pb2.CODEBOOK_STATE_STANDBY
    assert await states(suite) == {"other": "standby", "small": "active"}
    after = await suite.create("after", make_ads(5, first=30))
    assert {ad_sid.codebook_id for ad_sid in after.ad_sids} == {"small"}
    ad_ids = [f"ad-{number}" for number in range(35)]
    placed = await sids(suite, "other", ad_ids)
    assert len(set(placed)) == 35
    again = await suite.stub.RegisterCodebook(sid_pb2.RegisterCodebookRequest(codebook_id="other"))
    assert again == answer
    active = await suite.stub.RegisterCodebook(sid_pb2.RegisterCodebookRequest(codebook_id="small"))
    assert active.codebook.state == sid_pb2.CODEBOOK_STATE_ACTIVE
    await suite.activate("other")
    assert await sids(suite, "other", ad_ids) == placed


@pytest.mark.parametrize("seed", [0, 1])
async def test_no_ad_is_missed_while_writers_go_on(suite: Suite, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Pages are short and writers quick, on two servers; both register, and each ad has one SID under each codebook."""
    monkeypatch.setattr(codebook_life, "PAGE_SIZE", 7)
    rng = np.random.default_rng(seed)
    await suite.create("before", make_ads(60, first=300))
    request = sid_pb2.RegisterCodebookRequest(codebook_id="other")

    async def write(writer: int, server: Suite) -> None:
        for turn in range(6):
            await asyncio.sleep(float(rng.random()) * 0.03)
            # Ids before, between and behind those that the pages walk through.
            await server.create(f"{writer}-{turn}", make_ads(5, first=int(1000 * (writer + 1) + 5 * turn)))

    async with run_suite(suite.settings, suite.codebooks) as twin:
        await asyncio.gather(
            suite.stub.RegisterCodebook(request),
            twin.stub.RegisterCodebook(request),
            *(write(writer, [suite, twin][writer % 2]) for writer in range(4)),
        )
    assert await states(suite) == {"other": "standby", "small": "active"}
    async with suite.database.session() as session:
        rows = (await session.execute(text("SELECT codebook_id, semantic_codes, business_code FROM sid.ad_sid"))).all()
    assert len(rows) == 2 * (60 + 4 * 6 * 5)
    assert len({(row.codebook_id, *row.semantic_codes, row.business_code) for row in rows}) == len(rows)


async def test_a_call_that_was_cut_off_is_made_again_and_goes_on(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    await suite.create("before", make_ads(40))
    monkeypatch.setattr(codebook_life, "PAGE_SIZE", 10)
    place, pages = codebook_life._place, 0

    async def stop_in_the_middle(*args: object) -> int:
        nonlocal pages
        pages += 1
        if pages == 3:
            await asyncio.Event().wait()
        return await place(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(codebook_life, "_place", stop_in_the_middle)
    with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
        await suite.stub.RegisterCodebook(sid_pb2.RegisterCodebookRequest(codebook_id="other"), timeout=1.0)
    assert await states(suite) == {"other": "preparing", "small": "active"}
    async with suite.database.session() as session:
        first = set(await session.scalars(text("SELECT ad_id FROM sid.ad_sid WHERE codebook_id = 'other'")))
    assert len(first) == 20

    request = sid_pb2.ReadCatalogRequest(codebook_id="other", until_current=True)
    with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION.*'other' is being prepared"):
        async for _ in suite.stub.ReadCatalog(request):
            pass
    monkeypatch.setattr(codebook_life, "_place", place)
    await suite.create("after", make_ads(3, first=40))
    await suite.activate("other")
    assert len(set(await sids(suite, "other", [f"ad-{number}" for number in range(43)]))) == 43


async def test_a_full_codebook_that_is_not_active_holds_no_ad_up(suite: Suite) -> None:
    await suite.stub.RegisterCodebook(sid_pb2.RegisterCodebookRequest(codebook_id="tiny"))
    created = await suite.create("many", make_ads(40))  # more than "tiny" has SIDs
    assert len(created.ad_sids) == 40
    code, details = await refusal(suite.stub.ActivateCodebook(sid_pb2.ActivateCodebookRequest(codebook_id="tiny")))
    assert (code, "codebook_id: 'tiny'" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert await states(suite) == {"tiny": "standby", "small": "active"}


async def test_a_retired_codebook_keeps_its_sids_gives_no_more_and_can_come_back(suite: Suite) -> None:
    await suite.create("before", make_ads(10))
    await suite.activate("other")
    ad_ids = [f"ad-{number}" for number in range(10)]
    old = await sids(suite, "small", ad_ids)
    request = sid_pb2.RetireCodebookRequest(codebook_id="small")
    retired = await suite.stub.RetireCodebook(request)
    assert retired.codebook.state == sid_pb2.CODEBOOK_STATE_RETIRED
    assert await suite.stub.RetireCodebook(request) == retired
    assert await sids(suite, "small", ad_ids) == old, "logs may name them"
    with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION.*'small' is retired.*follow the active"):
        async for _ in suite.stub.ReadCatalog(sid_pb2.ReadCatalogRequest(codebook_id="small", until_current=True)):
            pass
    await suite.create("after", make_ads(2, first=10))
    code, details = await refusal(
        suite.stub.BatchGetAdSids(sid_pb2.BatchGetAdSidsRequest(ad_ids=["ad-10"], codebook_id="small"))
    )
    assert (code, "'ad-10'" in details) == (grpc.StatusCode.NOT_FOUND, True)

    await suite.activate("small")
    assert await sids(suite, "small", ad_ids) == old
    assert len(set(await sids(suite, "small", [*ad_ids, "ad-10", "ad-11"]))) == 12


async def test_the_active_codebook_cannot_be_retired(suite: Suite) -> None:
    code, details = await refusal(suite.stub.RetireCodebook(sid_pb2.RetireCodebookRequest(codebook_id="small")))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "'small' is the active codebook: activate another one first" in details
    code, _ = await refusal(suite.stub.RetireCodebook(sid_pb2.RetireCodebookRequest(codebook_id="nonesuch")))
    assert code == grpc.StatusCode.NOT_FOUND


async def test_a_reader_of_a_codebook_that_is_retired_meanwhile_is_told(suite: Suite) -> None:
    await suite.create("before", make_ads(3))
    await suite.activate("other")
    stream = suite.stub.ReadCatalog(sid_pb2.ReadCatalogRequest(codebook_id="small", cursor=3))
    await stream.read()
    await suite.stub.RetireCodebook(sid_pb2.RetireCodebookRequest(codebook_id="small"))
    with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION.*'small' is retired"):
        async with asyncio.timeout(5):
            while await stream.read() is not grpc.aio.EOF:
                pass


async def test_drift_tells_ads_of_another_kind_from_those_of_the_fit(suite: Suite) -> None:
    nothing = await suite.stub.GetCodebookDrift(sid_pb2.GetCodebookDriftRequest())
    assert (nothing.codebook_id, nothing.ads, nothing.HasField("error_ratio")) == ("small", 0, False)
    await suite.create("alike", make_ads(80))  # the texts that the codebook was fitted to
    alike = await suite.stub.GetCodebookDrift(sid_pb2.GetCodebookDriftRequest())
    assert alike.ads == 80
    assert 0.5 < alike.error_ratio < 1.25
    assert alike.far_share <= 0.05
    assert 0.0 < alike.fullest_prefix <= 1.0

    others = [
        sid_pb2.Ad(ad_id=f"other-{n}", title=f"{word} insurance policy {n}", brand=f"insurer {n % 3}")
        for n, word in enumerate(("life", "car", "house", "travel", "dental") * 8)
    ]
    await suite.create("others", others)
    for ad_id in ("ad-1", "ad-2"):  # changes of older ads make them no newer
        await suite.stub.UpdateAd(sid_pb2.UpdateAdRequest(ad_id=ad_id, bid_micros=7))
    shifted = await suite.stub.GetCodebookDrift(sid_pb2.GetCodebookDriftRequest(sample_size=40))
    assert shifted.ads == 40
    assert shifted.error_ratio > 2.0 * alike.error_ratio
    assert shifted.far_share > max(0.05, alike.far_share)


async def test_a_crowded_prefix_shows_in_the_drift(suite: Suite) -> None:
    crowd = [sid_pb2.Ad(ad_id=f"same-{n}", title="red lipstick", brand="Rouge", advertiser_id="a") for n in range(90)]
    await suite.create("crowd", crowd)
    found = await suite.stub.GetCodebookDrift(sid_pb2.GetCodebookDriftRequest())
    assert found.fullest_prefix == 1.0
    assert found.spilled_share > 0.2


async def test_a_codebook_without_an_encoder_leaves_out_what_has_no_vector(suite: Suite) -> None:
    await suite.stub.RegisterCodebook(sid_pb2.RegisterCodebookRequest(codebook_id="vectors-only"))
    own = make_ads(3, first=3)
    for ad in own:
        ad.embedding.extend([0.1 * len(ad.title)] * 16)
    await suite.create("text", make_ads(3))
    await suite.create("vectors", own)
    assert len(await sids(suite, "vectors-only", ["ad-3", "ad-4", "ad-5"])) == 3
    request = sid_pb2.BatchGetAdSidsRequest(ad_ids=["ad-0"], codebook_id="vectors-only")
    code, _ = await refusal(suite.stub.BatchGetAdSids(request))
    assert code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("lock", [1, 2, 3])
async def test_an_active_codebook_has_every_ad_whoever_comes_between(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, lock: int
) -> None:
    """Another caller retires it and a writer adds ads before any one of the transactions of an activation."""
    await suite.create("before", make_ads(10))
    await suite.stub.RegisterCodebook(sid_pb2.RegisterCodebookRequest(codebook_id="other"))
    lock_assignment, locks = codebook_life.lock_assignment, 0

    async def come_between(session: object) -> None:
        nonlocal locks
        locks += 1
        if locks == lock:
            monkeypatch.setattr(codebook_life, "lock_assignment", lock_assignment)
            await suite.stub.RetireCodebook(sid_pb2.RetireCodebookRequest(codebook_id="other"))
            await suite.create("between", make_ads(3, first=10))
        await lock_assignment(session)  # type: ignore[arg-type]

    monkeypatch.setattr(codebook_life, "lock_assignment", come_between)
    await suite.activate("other")
    monkeypatch.setattr(codebook_life, "lock_assignment", lock_assignment)
    await suite.create("after", make_ads(1, first=20))
    assert await states(suite) == {"other": "active", "small": "standby"}
    async with suite.database.session() as session:
        ads = set(await session.scalars(text("SELECT ad_id FROM sid.ad")))
    assert len(set(await sids(suite, "other", sorted(ads)))) == len(ads)


async def test_a_call_that_fails_takes_nothing_from_one_that_came_further(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_ads(3)
    for ad in own:
        ad.embedding.extend([0.1 * len(ad.title)] * 16)
    await suite.create("vectors", own)
    request = sid_pb2.RegisterCodebookRequest(codebook_id="vectors-only")
    place = codebook_life._place

    async def overtaken(*args: object) -> int:
        monkeypatch.setattr(codebook_life, "_place", place)
        await suite.stub.RegisterCodebook(request)
        await suite.create("text", make_ads(1, first=3))  # which that codebook leaves out
        return await place(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(codebook_life, "_place", overtaken)
    code, _ = await refusal(suite.stub.RegisterCodebook(request))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert await states(suite) == {"vectors-only": "standby", "small": "active"}
    assert len(await sids(suite, "vectors-only", ["ad-0", "ad-1", "ad-2"])) == 3


async def test_a_database_that_was_away_costs_no_page(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    await suite.create("before", make_ads(30))
    monkeypatch.setattr(codebook_life, "PAGE_SIZE", 10)
    place, pages = codebook_life._place, 0

    async def away_once(*args: object) -> int:
        nonlocal pages
        pages += 1
        if pages == 3:
            raise UnavailableError("database", "away", "repeat the call")
        return await place(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(codebook_life, "_place", away_once)
    request = sid_pb2.RegisterCodebookRequest(codebook_id="other")
    registered = await suite.stub.RegisterCodebook(request)  # the channel repeats a call that was UNAVAILABLE
    assert registered.codebook.state == sid_pb2.CODEBOOK_STATE_STANDBY
    assert pages == 4, "two, the one that failed, and the last"
    assert len(set(await sids(suite, "other", [f"ad-{number}" for number in range(30)]))) == 30


async def test_an_unreadable_standby_holds_no_ad_up_and_its_readers_hear_of_it_later(suite: Suite) -> None:
    request = sid_pb2.RegisterCodebookRequest(codebook_id="other")
    await suite.create("before", make_ads(2))
    await suite.stub.RegisterCodebook(request)
    folder = Path(suite.settings.artifact_store) / "codebooks" / "other"
    shutil.move(folder, folder.with_name("away"))
    stream = suite.stub.ReadCatalog(sid_pb2.ReadCatalogRequest(codebook_id="other", cursor=2))
    await stream.read()
    async with run_suite(suite.settings, suite.codebooks) as twin:  # which never had it in memory
        assert len((await twin.create("after", make_ads(2, first=2))).ad_sids) == 2
    # A reader that has seen a later change is past the ads it was not told of.
    await suite.stub.UpdateAd(sid_pb2.UpdateAdRequest(ad_id="ad-0", bid_micros=7))
    await suite.stub.UpdateAd(sid_pb2.UpdateAdRequest(ad_id="ad-2", state=sid_pb2.AD_STATE_PAUSED))
    seen: dict[str, sid_pb2.CatalogEntry] = {}
    async with asyncio.timeout(5):
        while "ad-0" not in seen:
            seen |= {entry.ad_id: entry for entry in (await stream.read()).entries}
        shutil.move(folder.with_name("away"), folder)
        await suite.stub.RegisterCodebook(request)
        while "ad-3" not in seen:
            seen |= {entry.ad_id: entry for entry in (await stream.read()).entries}
    assert seen.keys() == {"ad-0", "ad-2", "ad-3"}
    assert seen["ad-2"].state == sid_pb2.AD_STATE_PAUSED
