"""What is wrong with a data folder is said with file, line, field, value and remedy."""

import gzip
import json
from pathlib import Path

import pytest
from gr4ad_core.learning.data_folder import DataFolderError, Problem, check_folder, read_interactions, read_items

HEADER = "user_id,item_id,position,timestamp,event_type\n"
ITEMS = '{"item_id":"a"}\n{"item_id":"b"}\n'
ROWS = "u,a,0,5,click\nu,b,1,6,conversion\nv,a,0,,impression\n"


def write(folder: Path, items: str = ITEMS, interactions: str = HEADER + ROWS) -> Path:
    (folder / "items.jsonl").write_text(items)
    (folder / "interactions.csv").write_text(interactions)
    return folder


def test_a_good_folder_has_no_problem(tmp_path: Path) -> None:
    assert check_folder(write(tmp_path)) == []


ITEM_CASES = {
    "bad JSON": ('{"item_id": "c"', "line", "JSON object"),
    "no object": ("[1]", "line", "item_id"),
    "no id": ('{"title": "x"}', "item_id", "give every item an id"),
    "empty id": ('{"item_id": ""}', "item_id", "give every item an id"),
    "id of a wrong type": ('{"item_id": 1.5}', "item_id", "string or an integer"),
    "long id": (json.dumps({"item_id": "x" * 129}), "item_id", "128"),
    "duplicate id": ('{"item_id": "a"}', "item_id", "line 1"),
    "negative bid": ('{"item_id": "c", "bid_micros": -1}', "bid_micros", "never negative"),
    "huge bid": ('{"item_id": "c", "bid_micros": 2000000000000}', "bid_micros", "1000000000000"),
    "fractional bid": ('{"item_id": "c", "bid_micros": 1.5}', "bid_micros", "1500000"),
    "boolean bid": ('{"item_id": "c", "bid_micros": true}', "bid_micros", "integer"),
    "negative price": ('{"item_id": "c", "price": -0.01}', "price", "0 or more"),
    "NaN price": ('{"item_id": "c", "price": NaN}', "price", "finite"),
    "infinite price": ('{"item_id": "c", "price": Infinity}', "price", "finite"),
    "price in words": ('{"item_id": "c", "price": "12"}', "price", "number or null"),
    "title of a wrong type": ('{"item_id": "c", "title": 3}', "title", "string or null"),
    "long title": (json.dumps({"item_id": "c", "title": "x" * 2049}), "title", "2048"),
    "long description": (json.dumps({"item_id": "c", "description": "x" * 16385}), "description", "16384"),
    "categories of a wrong type": ('{"item_id": "c", "categories": "Beauty"}', "categories", "list of strings"),
    "nested categories": ('{"item_id": "c", "categories": [["Beauty"]]}', "categories", "list of strings"),
    "too many categories": (json.dumps({"item_id": "c", "categories": ["x"] * 17}), "categories", "first 16"),
    "unknown ad type": ('{"item_id": "c", "ad_type": "banner"}', "ad_type", "short_video"),
    "unknown conversion type": ('{"item_id": "c", "conversion_type": "sale"}', "conversion_type", "purchase"),
    "unknown state": ('{"item_id": "c", "state": ["active"]}', "state", "active, paused"),
}


@pytest.mark.parametrize(("line", "field", "remedy"), ITEM_CASES.values(), ids=ITEM_CASES)
def test_a_bad_item(tmp_path: Path, line: str, field: str, remedy: str) -> None:
    write(tmp_path, items=ITEMS + line + "\n")

    (problem,) = check_folder(tmp_path)

    assert (problem.file, problem.line, problem.field) == ("items.jsonl", 3, field)
    assert remedy in problem.remedy
    with pytest.raises(DataFolderError) as refused:
        read_items(tmp_path)
    assert refused.value.problem == problem
    assert str(refused.value) == f"items.jsonl:3: {problem.message}"


ROW_CASES = {
    "unknown item": ("u,c,2,7,click", "item_id", "'c'", "add the item"),
    "unknown event type": ("u,a,2,7,view", "event_type", "'view'", "impression, click"),
    "negative position": ("u,a,-1,7,click", "position", "'-1'", "0 or more"),
    "position in words": ("u,a,two,7,click", "position", "'two'", "integer"),
    "repeated position": ("u,a,1,7,click", "position", "'1'", "rise"),
    "falling position": ("u,a,0,7,click", "position", "'0'", "rise"),
    "earlier time": ("u,a,2,4,click", "timestamp", "'4'", "order a user's rows by time"),
    "time in words": ("u,a,2,2014-07-23,click", "timestamp", "'2014-07-23'", "unix time"),
    "NaN time": ("u,a,2,nan,click", "timestamp", "'nan'", "leave it empty"),
    "negative time": ("u,a,2,-5,click", "timestamp", "'-5'", "unix time"),
    "time in milliseconds": ("u,a,2,1700000000000,click", "timestamp", "'1700000000000'", "seconds"),
    "too few columns": ("u,a,2,7", "row", "'u,a,2,7'", "5 columns"),
    "too many columns": ("u,a,2,7,click,x", "row", "'u,a,2,7,click,x'", "5 columns"),
}


@pytest.mark.parametrize(("row", "field", "value", "remedy"), ROW_CASES.values(), ids=ROW_CASES)
def test_a_bad_row(tmp_path: Path, row: str, field: str, value: str, remedy: str) -> None:
    write(tmp_path, interactions=f"{HEADER}u,a,0,5,click\nu,b,1,6,conversion\n{row}\nv,a,0,,impression\n")

    (problem,) = check_folder(tmp_path)

    assert (problem.file, problem.line, problem.field, problem.value) == ("interactions.csv", 4, field, value)
    assert remedy in problem.remedy
    with pytest.raises(DataFolderError) as refused:
        read_interactions(tmp_path)
    assert refused.value.problem == problem


def test_an_unknown_time_between_two_does_not_hide_a_step_back(tmp_path: Path) -> None:
    write(tmp_path, interactions=f"{HEADER}u,a,0,9,click\nu,a,1,,click\nu,a,2,8,click\n")

    (problem,) = check_folder(tmp_path)

    assert (problem.line, problem.field) == (4, "timestamp")


def test_users_out_of_order(tmp_path: Path) -> None:
    write(tmp_path, interactions=f"{HEADER}u,a,0,,click\nv,a,0,,click\nu,b,1,,click\nu,b,2,,click\nw,a,0,,click\n")

    (problem,) = check_folder(tmp_path)

    assert (problem.line, problem.field, problem.value) == (4, "user_id", "'u'")
    assert "together" in problem.remedy


@pytest.mark.parametrize("user", ["", "x" * 129])
def test_a_user_id_that_no_request_could_carry(tmp_path: Path, user: str) -> None:
    write(tmp_path, interactions=f"{HEADER}{user},a,0,,click\n")

    (problem,) = check_folder(tmp_path)

    assert (problem.line, problem.field) == (2, "user_id")


def test_a_missing_column(tmp_path: Path) -> None:
    write(tmp_path, interactions="user_id,item_id,timestamp,event_type\nu,a,5,click\n")

    (problem,) = check_folder(tmp_path)

    assert problem == Problem(
        "interactions.csv", 1, "header", "without position", f"start the file with the header {HEADER.strip()}"
    )


def test_broken_quoting_is_found_at_its_line(tmp_path: Path) -> None:
    write(tmp_path, interactions=f'{HEADER}u,a,0,5,click\nu,"a"x,1,6,click\n')

    (problem,) = check_folder(tmp_path)

    assert (problem.line, problem.field, problem.value) == (3, "row", "not CSV")


def test_all_problems_are_listed_in_order(tmp_path: Path) -> None:
    write(
        tmp_path,
        items='{"item_id":"a"}\n{"item_id":"a"}\n{"item_id":"b","price":-1}\n',
        interactions=f"{HEADER}u,a,0,5,sold\nu,b,x,6,click\nu,a,1\n",
    )

    found = [(problem.file, problem.line, problem.field) for problem in check_folder(tmp_path)]

    # Item b is not called unknown: its own line is what is wrong.
    assert found == [
        ("items.jsonl", 2, "item_id"),
        ("items.jsonl", 3, "price"),
        ("interactions.csv", 2, "event_type"),
        ("interactions.csv", 3, "position"),
        ("interactions.csv", 4, "row"),
    ]


@pytest.mark.parametrize("name", ["items.jsonl", "interactions.csv"])
def test_a_truncated_gzip_says_where_it_ends(tmp_path: Path, name: str) -> None:
    write(
        tmp_path,
        items="".join(f'{{"item_id":{n},"title":"{n * 7919 % 1000003}"}}\n' for n in range(4000)),
        interactions=HEADER + "".join(f"u{n},{n * 31 % 4000},0,{n * 7919},click\n" for n in range(4000)),
    )
    packed = gzip.compress((tmp_path / name).read_bytes())
    (tmp_path / f"{name}.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / name).unlink()

    problems = [problem for problem in check_folder(tmp_path) if problem.file == f"{name}.gz"]

    assert [(problem.field, problem.value) for problem in problems] == [("file", "truncated gzip")]
    assert 1000 < problems[0].line < 4000
    assert "again" in problems[0].remedy
    with pytest.raises(DataFolderError, match="truncated gzip"):
        read_interactions(tmp_path)


def test_a_damaged_gzip(tmp_path: Path) -> None:
    write(tmp_path)
    packed = bytearray(gzip.compress(ITEMS.encode()))
    packed[-6] ^= 0xFF  # the checksum
    (tmp_path / "items.jsonl.gz").write_bytes(bytes(packed))
    (tmp_path / "items.jsonl").unlink()

    with pytest.raises(DataFolderError, match="damaged gzip"):
        read_items(tmp_path)


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "items.jsonl").write_bytes(ITEMS.encode() + '{"item_id":"ç"}'.encode("latin-1"))

    with pytest.raises(DataFolderError, match="items.jsonl:3: file is not UTF-8: save it as UTF-8"):
        read_items(tmp_path)


def test_missing_and_doubled_files(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(ITEMS.encode()))
    (tmp_path / "interactions.csv").unlink()

    messages = [str(problem) for problem in check_folder(tmp_path)]

    assert messages == [
        "items.jsonl: file is there twice, as items.jsonl and items.jsonl.gz: remove one of them",
        "interactions.csv: file is missing: put interactions.csv or interactions.csv.gz into the folder",
    ]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataFolderError, match="give the path of an existing data folder"):
        read_items(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", HEADER])
def test_an_interactions_file_without_rows(tmp_path: Path, text: str) -> None:
    write(tmp_path, interactions=text)

    (problem,) = check_folder(tmp_path)

    assert problem.value == "missing"


def test_an_items_file_without_items(tmp_path: Path) -> None:
    write(tmp_path, items="\n")

    assert [problem.value for problem in check_folder(tmp_path)] == ["empty"]
