"""`gr4ad data`, as it is called."""

import json
from pathlib import Path

import pytest
from gr4ad_core.learning.data_folder import read_interactions
from gr4ad_tools import data
from rich.console import Console
from typer.testing import CliRunner

HEADER = "user_id,item_id,position,timestamp,event_type\n"


@pytest.fixture(autouse=True)
def wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rich asks for the width of the terminal once; a table folds its cells to it.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(data, "console", Console(width=200))


def test_check_prints_where_what_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id":"a","bid_micros":-5}\n{"item_id":"[b]"}\n')
    (tmp_path / "interactions.csv").write_text(f"{HEADER}u,[b],0,,sold\n")

    result = CliRunner().invoke(data.app, ["check", str(tmp_path)])

    assert result.exit_code == 1
    for part in ("items.jsonl:1", "bid_micros", "-5", "never negative", "interactions.csv:2", "'sold'", "2 problems"):
        assert part in result.output


def test_check_shows_no_more_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id":"a"}\n')
    (tmp_path / "interactions.csv").write_text(HEADER + "u,a,x,,click\n" * 9)

    result = CliRunner().invoke(data.app, ["check", str(tmp_path), "--limit", "3"])

    assert result.output.count("interactions.csv:") == 3
    assert "9 problems, the first 3 are shown" in result.output


def test_check_counts_a_good_folder(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id":"a"}\n')
    (tmp_path / "interactions.csv").write_text(f"{HEADER}u,a,0,,click\n")

    result = CliRunner().invoke(data.app, ["check", str(tmp_path)])

    assert result.exit_code == 0
    assert "1 items, 1 users, 1 interactions" in result.output


def test_simulate_writes_a_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(data.app, ["simulate", str(tmp_path / "out"), "--scenario", "tiny", "--seed", "4"])

    assert result.exit_code == 0, result.output
    assert f"{len(read_interactions(tmp_path / 'out').items):,} events kept" in result.output


def test_simulate_names_the_scenarios(tmp_path: Path) -> None:
    result = CliRunner().invoke(data.app, ["simulate", str(tmp_path / "out"), "--scenario", "boom"])

    assert result.exit_code == 2
    assert "steady, cold, shift, bursty, tiny" in result.output
    assert not (tmp_path / "out").exists()


def test_amazon_converts_and_refuses(tmp_path: Path) -> None:
    reviews = [
        {"reviewerID": f"A{user}", "asin": f"B{item}", "unixReviewTime": 86_400}
        for user in range(2)
        for item in range(2)
    ]
    (tmp_path / "reviews.json").write_text("".join(json.dumps(line) + "\n" for line in reviews))
    (tmp_path / "meta.json").write_text("{'asin': 'B0', 'title': 'One'}\n")
    arguments = ["amazon", *(str(tmp_path / name) for name in ("reviews.json", "meta.json", "out"))]

    good = CliRunner().invoke(data.app, [*arguments, "--core", "2"])
    again = CliRunner().invoke(data.app, [*arguments, "--core", "2"])

    assert good.exit_code == 0, good.output
    assert "2 items, 2 users, 4 interactions of 4 reviews; 1 items without a title" in good.output
    assert again.exit_code == 1
    assert "remove it or give another one" in again.output
