"""Raw Amazon review files, of every release, as a data folder."""

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from gr4ad_core.learning.data_folder import Interactions, check_folder, read_interactions, read_items
from gr4ad_tools.amazon import AmazonError, convert

DAY = 86_400


def reviews_2014(core: int = 5, extra: int = 3) -> list[dict[str, object]]:
    """A dense block of core × core reviews on few days, and users and items that the core leaves out.

    As in the released files, lines go by ASIN.
    """
    lines = [
        {
            "reviewerID": f"A{user}",
            "asin": f"B00{item:03d}",
            "overall": 5.0,
            "reviewText": "It's fine",
            "unixReviewTime": 1_300_000_000 // DAY * DAY + DAY * (item % 2),
        }
        for item in range(core + 2)
        for user in range(core)
    ]
    # A chain that falls apart only step by step: one more user, whose items nobody else has.
    lines += [
        {"reviewerID": "Aloner", "asin": f"B99{item:03d}", "unixReviewTime": 1_300_000_000} for item in range(extra)
    ]
    lines += [{"reviewerID": "Aloner", "asin": "B00000", "unixReviewTime": 1_300_000_000}]
    return lines


def metadata_2014(items: int = 7) -> list[str]:
    records = [
        {
            "asin": f"B00{item:03d}",
            "title": f"It&#39;s   <b>item</b> {item}",
            "price": 4.5,
            "brand": "O'Neil",
            "categories": [["Beauty", "Make-up"], ["Other"]],
            "description": "A 'fine' thing",
            "related": {"also_bought": ["B00001"]},
        }
        for item in range(items - 1)
    ]
    return [repr(record) for record in records] + ["{'asin': 'B77777', 'title': 'of no interest'}"]


def write(path: Path, lines: list[str]) -> Path:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    return path


def convert_2014(folder: Path, lines: list[dict[str, object]] | None = None, name: str = "out", **options: int) -> Path:
    reviews = write(folder / "reviews.json.gz", [json.dumps(line) for line in lines or reviews_2014()])
    meta = write(folder / "meta.json.gz", metadata_2014())
    convert(reviews, meta, folder / name, **options)
    return folder / name


def test_the_folder_is_good_and_a_5_core(tmp_path: Path) -> None:
    out = convert_2014(tmp_path)

    read = read_interactions(out)

    assert check_folder(out) == []
    assert len(read.user_ids) == 5
    assert len(read.item_ids) == 7, "the loner's items are gone, and so is the loner"
    assert len(read.items) == 35
    counts = defaultdict(set)
    for user, item in pairs(read):
        counts[item].add(user)
    assert all(len(users) == 5 for users in counts.values())
    assert set(read.behaviors.tolist()) == {3}
    assert [path.name for path in sorted(out.parent.iterdir())] == ["meta.json.gz", "out", "reviews.json.gz"]


def pairs(read: Interactions) -> list[tuple[str, str]]:
    return [
        (read.user_ids[user], read.item_ids[item])
        for user in range(len(read.user_ids))
        for item in read.items[read.offsets[user] : read.offsets[user + 1]]
    ]


def test_the_core_is_taken_until_nothing_more_falls_out(tmp_path: Path) -> None:
    # A0 is the fifth user of B00000 only as long as A0 has five reviews: dropping A0 drops the item, and so on.
    lines = [line for line in reviews_2014() if not (line["reviewerID"] == "A0" and line["asin"] >= "B00004")]
    with pytest.raises(AmazonError, match="no user and item has 5 reviews"):
        convert_2014(tmp_path, lines)


def test_text_of_the_metadata_is_cleaned(tmp_path: Path) -> None:
    items = {item.title: item for item in read_items(convert_2014(tmp_path))}

    item = items["It's item 0"]
    assert (item.brand, item.categories, item.price) == ("O'Neil", ("Beauty", "Make-up"), 4.5)
    assert item.description == "A 'fine' thing"
    assert "" in items, "one item has no metadata and is kept"


def test_ids_and_equal_times_tell_nothing_of_the_asin(tmp_path: Path) -> None:
    users, items = 40, 30
    lines = [
        {"reviewerID": f"A{user:02d}", "asin": f"B{item:03d}", "unixReviewTime": DAY}
        for item in range(items)
        for user in range(users)
    ]
    out = convert_2014(tmp_path, lines)

    read = read_interactions(out)
    with gzip.open(out / "items.jsonl.gz", "rt") as text:
        asin_of = {str(record["item_id"]): record["asin"] for record in map(json.loads, text)}

    rises_asin = rises_id = steps = 0
    sequences = defaultdict(list)
    for user, item in pairs(read):
        sequences[user].append(item)
    for sequence in sequences.values():
        for earlier, later in pairwise(sequence):
            steps += 1
            rises_asin += asin_of[earlier] < asin_of[later]
            rises_id += int(earlier) < int(later)
    # A fair coin's share of 1,160 steps lies within 0.44 and 0.56 but once in ten thousand times.
    assert 0.44 < rises_asin / steps < 0.56
    assert 0.44 < rises_id / steps < 0.56
    by_id = [asin_of[str(number)] for number in range(1, items + 1)]
    assert by_id not in (sorted(by_id), sorted(by_id, reverse=True))


def test_the_order_depends_on_the_seed_and_not_on_the_raw_file_s(tmp_path: Path) -> None:
    lines = reviews_2014()
    (tmp_path / "other").mkdir()

    same = pairs(read_interactions(convert_2014(tmp_path, lines, "one", seed=1)))
    reversed_file = pairs(read_interactions(convert_2014(tmp_path / "other", lines[::-1], "two", seed=1)))
    other_seed = pairs(read_interactions(convert_2014(tmp_path, lines, "three", seed=2)))

    assert same == reversed_file
    assert same != other_seed
    assert sorted(same) == sorted(other_seed)


def test_later_reviews_come_later_and_a_second_review_of_an_item_does_not_count(tmp_path: Path) -> None:
    lines = reviews_2014()
    lines += [{"reviewerID": "A0", "asin": "B00000", "unixReviewTime": 5 * 1_300_000_00}]

    read = read_interactions(convert_2014(tmp_path, lines))

    assert len(read.items) == 35
    for user in range(5):
        times = read.timestamps[read.offsets[user] : read.offsets[user + 1]].tolist()
        assert times == sorted(times)
    assert read.timestamps.min() == 650_000_000, "of two reviews of an item the first counts"


def test_strict_json_releases(tmp_path: Path) -> None:
    reviews = [
        {"user_id": f"U{user}", "parent_asin": f"P{item}", "asin": f"variant{user}", "timestamp": 1_600_000_000_123}
        for item in range(5)
        for user in range(5)
    ]
    metadata = [
        {
            "parent_asin": f"P{item}",
            "title": f"Title {item}",
            "store": "Shop",
            "categories": ["A", "B"],
            "price": "$1,234.50 - $2,000.00",
            "description": ["One.", "Two."],
        }
        for item in range(5)
    ]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reviews))
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metadata))
    shares: dict[str, list[float]] = defaultdict(list)

    summary = convert(
        tmp_path / "reviews.jsonl",
        tmp_path / "meta.jsonl",
        tmp_path / "out",
        on_progress=lambda name, share: shares[name].append(share),
    )

    assert (summary.reviews, summary.users, summary.items, summary.interactions, summary.untitled) == (25, 5, 5, 25, 0)
    (item,) = {(item.brand, item.categories, item.price, item.description) for item in read_items(tmp_path / "out")}
    assert item == ("Shop", ("A", "B"), 1234.5, "One. Two.")
    assert set(read_interactions(tmp_path / "out").timestamps.tolist()) == {1_600_000_000.0}
    assert {name: share[-1] for name, share in shares.items()} == {"reviews": 1.0, "metadata": 1.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'reviewerID': __import__('os')}", "reviews.json.gz:2: line is .*: give one JSON object or Python dict"),
        ("[]", "line is '\\[\\]'"),
        ('{"asin": "B", "unixReviewTime": 1}', "reviewerID is None: give a review file"),
        ('{"reviewerID": "A", "unixReviewTime": 1}', "asin is None"),
        ('{"reviewerID": "A", "asin": "B", "unixReviewTime": "x"}', "unixReviewTime is 'x'"),
        ('{"reviewerID": "A", "asin": "B", "unixReviewTime": -1}', "unixReviewTime is -1: give unix time"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    reviews = write(tmp_path / "reviews.json.gz", [json.dumps(reviews_2014()[0]), line])
    meta = write(tmp_path / "meta.json.gz", metadata_2014())

    with pytest.raises(AmazonError, match=message):
        convert(reviews, meta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_leaves_no_folder(tmp_path: Path) -> None:
    reviews = write(tmp_path / "reviews.json.gz", [json.dumps(line) for line in reviews_2014()])
    meta = write(tmp_path / "meta.json.gz", metadata_2014())
    meta.write_bytes(meta.read_bytes()[:-20])

    with pytest.raises(AmazonError, match=r"meta.json.gz:\d+: file is truncated or damaged .*: download it again"):
        convert(reviews, meta, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json.gz", "reviews.json.gz"]


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    out = convert_2014(tmp_path)
    before = (out / "items.jsonl.gz").read_bytes()

    with pytest.raises(AmazonError, match="folder exists: remove it or give another one"):
        convert_2014(tmp_path)
    assert (out / "items.jsonl.gz").read_bytes() == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AmazonError, match="nowhere.gz: file is unreadable"):
        convert(tmp_path / "nowhere.gz", tmp_path / "meta.gz", tmp_path / "out")
