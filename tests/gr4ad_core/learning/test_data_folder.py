"""The readers of the normalised data folder."""

import csv
import gzip
import io
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.learning.data_folder import (
    DataFolderError,
    Interactions,
    Item,
    check_folder,
    hold_out,
    read_interactions,
    read_items,
)
from hypothesis import given
from hypothesis import strategies as st

HEADER = "user_id,item_id,position,timestamp,event_type\n"


def write(folder: Path, items: str, interactions: str, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("items.jsonl", items), ("interactions.csv", interactions)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)
    return folder


def test_defaults_are_applied(tmp_path: Path) -> None:
    write(tmp_path, '{"item_id": 7}\n{"item_id": "b", "brand": "Acme", "price": 3, "bid_micros": 0}\n', HEADER)

    assert read_items(tmp_path) == [
        Item("7", "", "", (), "", None, "7", "product", "purchase", 1_000_000, "active"),
        Item("b", "", "Acme", (), "", 3.0, "Acme", "product", "purchase", 0, "active"),
    ]


def test_every_field_is_read(tmp_path: Path) -> None:
    record = {
        "item_id": "a",
        "title": "Añejo",
        "brand": "B",
        "categories": ["C", "D"],
        "description": "E",
        "price": 1.5,
        "advertiser_id": 9,
        "ad_type": "live_stream",
        "conversion_type": "lead",
        "bid_micros": 12,
        "state": "paused",
        "asin": "ignored",
    }
    write(tmp_path, json.dumps(record, ensure_ascii=False), HEADER)

    assert read_items(tmp_path) == [
        Item("a", "Añejo", "B", ("C", "D"), "E", 1.5, "9", "live_stream", "lead", 12, "paused")
    ]


def test_a_long_brand_still_makes_an_advertiser_that_can_be_ingested(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({"item_id": "a", "brand": "x" * 200}), HEADER)

    assert read_items(tmp_path)[0].advertiser_id == "x" * 128


@pytest.mark.parametrize("packed", [False, True])
def test_interactions_keep_the_file_s_order(tmp_path: Path, packed: bool) -> None:
    rows = "u2,b,0,,impression\nu2,a,5,10.5,click\nu1,a,1,7,conversion\nu1,c,2,7,review\nu1,b,3,,purchase\n"
    write(tmp_path, '{"item_id":"c"}\n{"item_id":"a"}\n\n{"item_id":"b"}\n', HEADER + rows, packed=packed)

    read = read_interactions(tmp_path)

    assert read.user_ids == ["u2", "u1"]
    assert read.item_ids == ["c", "a", "b"]
    assert read.offsets.tolist() == [0, 2, 5]
    assert read.items.tolist() == [2, 1, 1, 0, 2]
    assert read.behaviors.tolist() == [1, 2, 3, 3, 3]
    np.testing.assert_array_equal(read.timestamps, [math.nan, 10.5, 7, 7, math.nan])
    assert read.items.dtype == read.behaviors.dtype == read.offsets.dtype == np.int64


def test_columns_may_come_in_any_order_and_with_others(tmp_path: Path) -> None:
    rows = "slot,event_type,item_id,user_id,timestamp,position\r\n3,click,a,u,5,0\r\n"
    write(tmp_path, '\ufeff{"item_id":"a"}\r\n', "\ufeff" + rows)

    read = read_interactions(tmp_path)

    assert (read.user_ids, read.items.tolist(), read.behaviors.tolist()) == (["u"], [0], [2])


def test_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path, '{"item_id":"a"}', HEADER + "u,a,0,,click\n")
    members = gzip.compress(b'{"item_id":"a"}\n') + gzip.compress(b'{"item_id":"b"}\n') + b"\0" * 16
    (tmp_path / "items.jsonl").unlink()
    (tmp_path / "items.jsonl.gz").write_bytes(members)

    assert [item.item_id for item in read_items(tmp_path)] == ["a", "b"]


IDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
EVENTS = st.tuples(
    st.integers(0, 5), st.integers(1, 10), st.none() | st.integers(0, 3), st.sampled_from(["impression", "click"])
)


@given(
    items=st.lists(IDS, min_size=6, max_size=6, unique=True),
    users=st.lists(st.tuples(IDS, st.lists(EVENTS, min_size=1, max_size=6)), max_size=5, unique_by=lambda u: u[0]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, items: list[str], users: list[tuple[str, list[tuple[int, int, int, str]]]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    expected = []
    for user, events in users:
        position, now = 0, 0
        for item, step, gap, event_type in events:
            position += step
            now += gap or 0
            writer.writerow([user, items[item], position, "" if gap is None else now, event_type])
            expected.append((user, items[item], {"impression": 1, "click": 2}[event_type], gap is None))
    folder = write(
        tmp_path_factory.mktemp("folder"),
        "".join(json.dumps({"item_id": item}) + "\n" for item in items),
        HEADER + text.getvalue(),
    )
    if not users:
        with pytest.raises(DataFolderError, match="rows is missing"):
            read_interactions(folder)
        return

    read = read_interactions(folder)

    owners = np.repeat(np.arange(len(read.user_ids)), np.diff(read.offsets))
    found = [
        (read.user_ids[owner], read.item_ids[item], behavior, math.isnan(time))
        for owner, item, behavior, time in zip(owners, read.items, read.behaviors, read.timestamps, strict=True)
    ]
    assert found == expected
    assert check_folder(folder) == []


def sequences(interactions: Interactions) -> list[list[tuple[int, int, float]]]:
    events = list(
        zip(interactions.items.tolist(), interactions.behaviors.tolist(), interactions.timestamps.tolist(), strict=True)
    )
    offsets = interactions.offsets.tolist()
    return [events[start:end] for start, end in pairwise(offsets)]


@given(st.lists(st.integers(0, 6), max_size=8), st.integers(0, 7))
def test_hold_out_drops_the_last_events_of_each_user(lengths: list[int], n: int) -> None:
    total = sum(lengths)
    interactions = Interactions(
        user_ids=[f"u{user}" for user in range(len(lengths))],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=["a", "b", "c"],
        items=np.arange(total, dtype=np.int64) % 3,
        behaviors=np.arange(total, dtype=np.int64) % 3 + 1,
        timestamps=np.arange(total, dtype=np.float64),
    )

    kept = hold_out(interactions, n)

    assert sequences(kept) == [events[: max(len(events) - n, 0)] for events in sequences(interactions)]
    assert kept.user_ids == interactions.user_ids


def test_a_negative_hold_out_is_refused() -> None:
    nothing = Interactions([], np.zeros(1, np.int64), [], np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    with pytest.raises(ValueError, match="n is -1"):
        hold_out(nothing, -1)
