"""The table of ads and the index of the live ones, against plain dictionaries."""

from __future__ import annotations

import itertools
import random

import pytest
from ad_generator.ad_table import FIRST_CAPACITY, AdTable
from ad_generator.live_index import build_live_index
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2

from tests.ad_generator.neighbours import ACTIVE, PAUSED

LEVEL_SIZES = (6, 20, 20)


def entry(ad_id: str, sid: tuple[int, ...], state: sid_pb2.AdState.ValueType = ACTIVE) -> sid_pb2.CatalogEntry:
    return sid_pb2.CatalogEntry(ad_id=ad_id, sid=type_pb2.SemanticId(codes=sid), state=state)


def test_random_changes_lead_where_a_dictionary_leads() -> None:
    draw = random.Random(7)
    sids = list(itertools.product(*map(range, LEVEL_SIZES)))
    draw.shuffle(sids)
    table, expected = AdTable(3), {}
    for _ in range(4 * FIRST_CAPACITY):
        ad = draw.randrange(FIRST_CAPACITY * 2)
        state = draw.choice((ACTIVE, PAUSED))
        was_live = expected.get(f"ad{ad}", (None, PAUSED))[1] == ACTIVE
        changed = table.apply([entry(f"ad{ad}", sids[ad], state)])
        assert changed == (was_live != (state == ACTIVE))
        expected[f"ad{ad}"] = (sids[ad], state)
    assert len(table) == len(expected) > FIRST_CAPACITY

    slots = table.slots([*expected, "unknown"])
    assert slots[-1] == -1
    assert table.sids(slots[:-1]).tolist() == [list(sid) for sid, _ in expected.values()]
    assert table.live(slots[:-1]).tolist() == [state == ACTIVE for _, state in expected.values()]
    assert all(table.is_live(ad_id) == (state == ACTIVE) for ad_id, (_, state) in expected.items())
    assert not table.is_live("unknown")

    index = build_live_index(table, table.view(), 9, LEVEL_SIZES)
    live = {sid: ad_id for ad_id, (sid, state) in expected.items() if state == ACTIVE}
    assert (index.size, index.cursor) == (len(live), 9)
    ads = [table.ad_ids[slot] for slot in index.slots_by_place]
    assert ads == [live[sid] for sid in sorted(live)]
    assert [tuple(sid) for sid in index.trie.sids().tolist()] == sorted(live)


def test_a_view_does_not_move_when_the_table_grows() -> None:
    table = AdTable(1)
    table.apply([entry("ad0", (0,))])
    view = table.view()
    table.apply([entry(f"ad{i}", (i,)) for i in range(FIRST_CAPACITY + 1)])
    table.apply([entry("ad0", (0,), PAUSED)])
    assert view.live.shape == (1,)
    assert build_live_index(table, table.view(), 0, (FIRST_CAPACITY + 1,)).size == FIRST_CAPACITY


def test_an_empty_table_makes_an_empty_index() -> None:
    table = AdTable(3)
    index = build_live_index(table, table.view(), 0, LEVEL_SIZES)
    assert index.size == len(index.slots_by_place) == 0


def test_a_bid_alone_leaves_the_index_as_it_is() -> None:
    table = AdTable(3)
    assert table.apply([entry("ad", (1, 2, 3))])
    assert not table.apply([sid_pb2.CatalogEntry(ad_id="ad", state=ACTIVE, bid_micros=7)])
    assert table.sids(table.slots(["ad"])).tolist() == [[1, 2, 3]]


def test_sids_of_another_codebook_are_refused() -> None:
    table = AdTable(3)
    with pytest.raises(ValueError, match="sid of ad odd"):
        table.apply([entry("odd", (1, 2))])
    table.apply([entry("ad", (1, 2, 30))])
    with pytest.raises(ValueError, match="give codes"):
        build_live_index(table, table.view(), 0, LEVEL_SIZES)
