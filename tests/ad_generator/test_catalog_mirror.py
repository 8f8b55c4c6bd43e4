"""The mirror of the catalogue: snapshots, changes, resumption, and the last look before an ad is returned."""

from __future__ import annotations

import asyncio
import time

import pytest
from ad_generator import catalog_mirror
from ad_generator.ad_table import AdTable
from gr4ad.sid.v1 import sid_pb2

from tests.ad_generator.neighbours import ACTIVE, PAUSED, Catalogue
from tests.ad_generator.policies import CODEBOOK, publish
from tests.ad_generator.suite import ALL_SIDS, Neighbours, Suite, run_generator, run_ready_generator


async def test_the_feed_resumes_where_it_broke_off(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours) as suite:
        catalogue = neighbours.catalogue
        cursor = catalogue.put("ad-0-0-0", (0, 0, 0), PAUSED)
        await suite.reaches(lambda status: status.catalog_cursor == cursor, "the pause is indexed")
        await neighbours.sid_assigner.stop()
        cursor = catalogue.put("ad-1-1-1", (1, 1, 1), PAUSED)
        assert len((await suite.ask(count=10)).candidates) == 10  # serves on from what it knows
        await neighbours.sid_assigner.start()
        await suite.reaches(lambda status: status.catalog_cursor == cursor, "the change of the outage is indexed")
        assert catalogue.asked_cursors[0] == 0
        assert catalogue.asked_cursors[-1] == cursor - 1
        status = await suite.status()
        assert status.live_ads == len(ALL_SIDS) - 2


async def test_a_store_that_was_set_back_is_read_anew(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours) as suite:
        await neighbours.sid_assigner.stop()
        restored = Catalogue(CODEBOOK)
        kept = restored.fill(ALL_SIDS[:30])
        neighbours.catalogues.by_codebook[CODEBOOK] = restored
        await neighbours.sid_assigner.start()
        await suite.reaches(lambda status: status.live_ads == 30, "the restored catalogue is indexed")
        assert {ad.ad_id for ad in (await suite.ask(count=10)).candidates} <= set(kept)


async def test_an_interrupted_snapshot_is_taken_again(neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours.catalogue.fill(ALL_SIDS)
    whole = Catalogue.ReadCatalog
    attempts = []

    async def breaks_off(self, request, context):  # type: ignore[no-untyped-def]
        attempts.append(request.cursor)
        sent = 0
        async for part in whole(self, request, context):
            sent += 1
            if len(attempts) < 3 and sent == 4:
                return
            yield part

    monkeypatch.setattr(Catalogue, "ReadCatalog", breaks_off)
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours) as suite:
        await suite.serves("first")
        assert attempts == [0, 0, 0]
        assert (await suite.status()).live_ads == len(ALL_SIDS)


async def test_a_pause_that_the_index_does_not_hold_yet_counts(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is ahead of the trie: the check on the table alone must keep the ad out."""
    monkeypatch.setattr(catalog_mirror, "COALESCE_S", 30.0)
    best = (await suite.ask(count=1)).candidates[0]
    before = (await suite.status()).catalog_cursor
    suite.neighbours.catalogue.put(best.ad_id, best.sid.codes, PAUSED)
    for _ in range(100):
        answer = await suite.ask(count=10)
        if best.ad_id not in {ad.ad_id for ad in answer.candidates}:
            break
        await asyncio.sleep(0.01)
    assert best.ad_id not in {ad.ad_id for ad in answer.candidates}
    assert len(answer.candidates) == 9  # the beam spent one place on it
    assert (await suite.status()).catalog_cursor == before


async def test_a_pause_during_the_search_counts(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ad is live when the model runs and paused when the answer is written."""
    best = (await suite.ask(count=1)).candidates[0]
    live = AdTable.live
    looks = []

    def paused_after_the_look(table: AdTable, slots):  # type: ignore[no-untyped-def]
        states = live(table, slots)
        looks.append(states)
        table.apply([sid_pb2.CatalogEntry(ad_id=best.ad_id, sid=best.sid, state=PAUSED)])
        return states

    monkeypatch.setattr(AdTable, "live", paused_after_the_look)
    answer = await suite.ask(count=5)
    assert len(looks) == 1
    assert looks[0].all()
    assert best.ad_id not in {ad.ad_id for ad in answer.candidates}
    assert len(answer.candidates) == 4


async def test_many_changes_make_few_indexes(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []
    build = catalog_mirror.build_live_index

    def counted(*args):  # type: ignore[no-untyped-def]
        builds.append(args)
        return build(*args)

    monkeypatch.setattr(catalog_mirror, "build_live_index", counted)
    catalogue = suite.neighbours.catalogue
    for turn in range(200):
        cursor = catalogue.put("ad-0-0-0", (0, 0, 0), (PAUSED, ACTIVE)[turn % 2])
        await asyncio.sleep(0)
    begin = time.monotonic()
    await suite.reaches(lambda status: status.catalog_cursor == cursor, "all changes are indexed")
    assert 1 <= len(builds) <= 10
    assert time.monotonic() - begin < 1.0


async def test_changes_that_leave_the_live_set_alone_move_the_cursor_only(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_mirror, "build_live_index", None)  # would fail if it were called
    cursor = suite.neighbours.catalogue.put("ad-0-0-0", (0, 0, 0), ACTIVE)
    await suite.reaches(lambda status: status.catalog_cursor == cursor, "the cursor moved")


async def test_an_insert_is_generatable_soon_after(suite: Suite) -> None:
    catalogue = suite.neighbours.catalogue
    for sid in ALL_SIDS[:-1]:
        cursor = catalogue.put("ad-" + "-".join(map(str, sid)), sid, PAUSED)
    await suite.reaches(lambda status: status.catalog_cursor == cursor, "the pauses are indexed")
    delays = []
    for number in range(5):
        begin = time.monotonic()
        catalogue.put(f"new-{number}", ALL_SIDS[number])
        while f"new-{number}" not in {ad.ad_id for ad in (await suite.ask(count=10)).candidates}:
            assert time.monotonic() - begin < 1.0
        delays.append(time.monotonic() - begin)
    assert max(delays) < 1.0
