"""The mirror of the catalogue: snapshots, changes, resumption, and the last look before an ad is returned."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from ad_generator.ad_table import AdTable
from ad_generator.policy_process import PolicyProcess
from gr4ad.sid.v1 import sid_pb2

from tests.ad_generator.neighbours import ACTIVE, PAUSED, Catalogue, eventually
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
    best = (await suite.ask(count=1)).candidates[0]
    monkeypatch.setattr(AdTable, "flipped_since", lambda table, flips: np.zeros(0, np.int64))  # tells nobody
    cursor = suite.neighbours.catalogue.put(best.ad_id, best.sid.codes, PAUSED)
    await suite.reaches(lambda status: status.catalog_cursor == cursor, "the pause is in the table")
    answer = await suite.ask(count=10)
    assert best.ad_id not in {ad.ad_id for ad in answer.candidates}
    assert len(answer.candidates) == 9  # the beam spent one place on it


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


async def test_what_is_in_the_table_is_in_the_next_answer(suite: Suite) -> None:
    catalogue = suite.neighbours.catalogue
    for turn in range(20):
        state = (PAUSED, ACTIVE)[turn % 2]
        for sid in ALL_SIDS[:110]:
            cursor = catalogue.put("ad-" + "-".join(map(str, sid)), sid, state)
        await suite.reaches(lambda status, cursor=cursor: status.catalog_cursor == cursor, "the table has them")
        expected = len(ALL_SIDS) - (110 if state == PAUSED else 0)
        answer = await suite.ask(count=len(ALL_SIDS))
        assert len(answer.candidates) == expected
        assert answer.beam_trace.widths[-1] == expected  # the policy's own index holds no more and no fewer


async def test_an_idle_policy_is_kept_in_step(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    caught_up = []
    catch_up = PolicyProcess.catch_up

    def counted(process: PolicyProcess, table: AdTable) -> None:
        catch_up(process, table)
        caught_up.append(table.flips)

    monkeypatch.setattr(PolicyProcess, "catch_up", counted)
    for turn in range(200):
        suite.neighbours.catalogue.put("ad-0-0-0", (0, 0, 0), (PAUSED, ACTIVE)[turn % 2])
        await asyncio.sleep(0)
    await eventually(lambda: caught_up and caught_up[-1] == len(ALL_SIDS) + 200, "the process knows all")
    assert len(caught_up) <= 20  # many changes a message


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
