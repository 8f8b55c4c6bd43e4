"""The table of ads against plain dictionaries, and what it remembers of changes."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from ad_generator.ad_table import FEWEST_FLIPS, FIRST_CAPACITY, AdTable
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
    table, expected = AdTable(LEVEL_SIZES), {}
    for _ in range(4 * FIRST_CAPACITY):
        ad = draw.randrange(FIRST_CAPACITY * 2)
        state = draw.choice((ACTIVE, PAUSED))
        was_live, flips = expected.get(f"ad{ad}", (None, PAUSED))[1] == ACTIVE, table.flips
        table.apply([entry(f"ad{ad}", sids[ad], state)])
        assert table.flips - flips == (was_live != (state == ACTIVE))
        expected[f"ad{ad}"] = (sids[ad], state)
    assert len(table) == len(expected) > FIRST_CAPACITY

    slots = table.slots([*expected, "unknown"])
    assert slots[-1] == -1
    assert table.sids(slots[:-1]).tolist() == [list(sid) for sid, _ in expected.values()]
    assert table.live(slots[:-1]).tolist() == [state == ACTIVE for _, state in expected.values()]
    assert all(table.is_live(ad_id) == (state == ACTIVE) for ad_id, (_, state) in expected.items())
    assert not table.is_live("unknown")

    view = table.view()
    live = {ad_id for ad_id, (_, state) in expected.items() if state == ACTIVE}
    assert {table.ad_ids[slot] for slot in view.live.nonzero()[0]} == live
    assert {table.ad_ids[slot] for slot in table.live_slots} == live
    assert [tuple(sid) for sid in view.sids.tolist()] == [expected[ad_id][0] for ad_id in table.ad_ids]


def test_a_view_does_not_move_when_the_table_grows() -> None:
    table = AdTable((FIRST_CAPACITY + 1,))
    table.apply([entry("ad0", (0,))])
    view = table.view()
    table.apply([entry(f"ad{i}", (i,)) for i in range(FIRST_CAPACITY + 1)])
    table.apply([entry("ad0", (0,), PAUSED)])
    assert view.live.shape == (1,)
    assert len(table.live_slots) == FIRST_CAPACITY


def test_tells_which_ads_came_or_went_since() -> None:
    table = AdTable((100,))
    table.apply([entry("a", (0,)), entry("b", (1,), PAUSED), entry("c", (2,))])
    seen = table.flips
    assert seen == 2
    assert table.flipped_since(seen).tolist() == []
    table.apply([entry("c", (2,)), entry("b", (1,)), entry("a", (0,), PAUSED), entry("b", (1,), PAUSED)])
    assert table.flipped_since(seen).tolist() == [0, 1]
    assert table.flipped_since(table.flips - 1).tolist() == [1]


def test_forgets_changes_that_are_more_than_reading_all_ads_would_be() -> None:
    table = AdTable((2,))
    table.apply([entry("a", (0,))])
    turns = [entry("a", (0,), PAUSED), entry("a", (0,))]
    table.apply(turns * (FEWEST_FLIPS // 2))
    assert table.flipped_since(1).tolist() == [0]
    assert table.flipped_since(0) is None
    table.apply(turns * FEWEST_FLIPS * 2)
    assert table.flipped_since(1) is None
    assert table.flips == 1 + FEWEST_FLIPS * 5
    assert table.flipped_since(table.flips - FEWEST_FLIPS).tolist() == [0]


def test_tells_whether_an_ad_of_some_kind_came_to_life_since() -> None:
    table = AdTable(LEVEL_SIZES)
    table.apply([entry("a", (0, 0, 0)), entry("b", (1, 0, 0)), entry("c", (2, 0, 0), PAUSED)])
    seen = table.arrivals
    assert seen == 2

    def came(*first_codes: int) -> bool:
        return table.came_since(seen, np.array(first_codes, np.int64))

    table.apply([entry("a", (0, 0, 0)), entry("b", (1, 0, 0), PAUSED), entry("d", (4, 0, 0), PAUSED)])
    assert not table.came_since(seen, None), "what stays live, dies or comes paused does not come to life"
    table.apply([entry("c", (2, 0, 0)), entry("b", (1, 0, 0))])
    assert table.came_since(seen, None)
    assert came(0, 2)
    assert came(1)
    assert not came(0, 3, 4, 5)
    assert not came(), "of no kind at all"
    assert table.came_since(seen + 1, np.array([1]))
    assert not table.came_since(seen + 1, np.array([2])), "it came before b did"
    assert not table.came_since(table.arrivals, None)


def test_a_bid_alone_leaves_the_live_ads_as_they_are() -> None:
    table = AdTable(LEVEL_SIZES)
    table.apply([entry("ad", (1, 2, 3))])
    flips = table.flips
    table.apply([sid_pb2.CatalogEntry(ad_id="ad", state=ACTIVE, bid_micros=7)])
    assert table.flips == flips
    assert table.sids(table.slots(["ad"])).tolist() == [[1, 2, 3]]


def test_knows_the_account_of_every_ad_paused_or_not() -> None:
    table = AdTable(LEVEL_SIZES)
    for number in range(4):
        change = entry(f"ad{number}", (number, 0, 0), PAUSED if number == 3 else ACTIVE)
        change.advertiser_id = f"account{number % 2}"
        table.apply([change])
    told = [table.advertiser_of(f"ad{number}") for number in range(4)]
    assert told == ["account0", "account1", "account0", "account1"]
    assert table.advertiser_of("unknown") is None


@pytest.mark.parametrize("sid", [(1, 2), (1, 2, 30)])
def test_sids_of_another_codebook_are_refused(sid: tuple[int, ...]) -> None:
    table = AdTable(LEVEL_SIZES)
    with pytest.raises(ValueError, match=r"sid of ad odd: .*: give codes from 0 to below \(6, 20, 20\)"):
        table.apply([entry("before", (0, 0, 0)), entry("odd", sid)])
    assert table.ad_ids == ["before"]
