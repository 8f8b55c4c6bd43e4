"""The demo over several seeds: a run each, their means, and no run done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gr4ad_tools.cli import app
from gr4ad_tools.demo import seeds
from gr4ad_tools.demo.run import DemoOptions
from gr4ad_tools.demo.seeds import SeedFailedError
from rich.console import Console
from typer.testing import CliRunner

QUIET = Console(quiet=True)


class Runs:
    """Stands for the demo: notes the seeds, fails for one of them once, and earns ten times the seed."""

    def __init__(self, failing: int) -> None:
        self.seeds: list[int] = []
        self.failing = failing

    def __call__(self, options: DemoOptions) -> None:
        if options.seed == self.failing:
            self.failing = -1
            raise SeedFailedError
        self.seeds.append(options.seed)
        assert options.out.name == f"seed-{options.seed}"
        options.out.mkdir(parents=True)
        values = {"rpm": 10.0 * options.seed, "rpm_ci_low": 1.0, "lift_pct": 3.0, "lift_ci_high": 9.0, "seconds": 1.0}
        figures: dict[str, Any] = {name: {"value": value, "unit": "units"} for name, value in values.items()}
        if options.seed == 4:
            figures["odd"] = {"value": 1.0, "unit": ""}
        (options.out / "summary.json").write_text(json.dumps({"figures": figures}))


def test_every_seed_is_run_once_and_the_means_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(failing=5)
    monkeypatch.setattr(seeds, "run_seed", runs)
    options = DemoOptions(None, tmp_path / "out", seed=3, preset="", command="gr4ad demo --seeds 3")
    with pytest.raises(SeedFailedError):
        seeds.run_seeds(options, 3, QUIET)
    assert not (tmp_path / "out" / "summary.json").exists()
    document = seeds.run_seeds(options, 3, QUIET)
    assert runs.seeds == [3, 4, 5]
    rpm = document["figures"]["rpm"]
    assert (rpm["value"], rpm["min"], rpm["max"], rpm["n"], rpm["unit"]) == (40.0, 30.0, 50.0, 3, "units")
    # A figure that one run lacks has no mean.
    assert set(document["figures"]) == {"rpm", "rpm_ci_low", "lift_pct", "lift_ci_high", "seconds"}
    # Ends of intervals are those of the mean: 40 less 4.303 standard errors of 10 / √3.
    assert document["figures"]["rpm_ci_low"]["value"] == pytest.approx(15.159, abs=1e-3)
    assert document["figures"]["lift_ci_high"]["value"] == pytest.approx(3.0)
    assert set(document["source"]) == {"market", "market_version"}
    assert document["seeds"] == [3, 4, 5]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["figures"] == document["figures"]


def test_a_seed_that_fails_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "items.jsonl").write_text('{"item_id": "a"}\n{"item_id": "a"}\n')
    (data / "interactions.csv").write_text("user_id,item_id,position,timestamp,event_type\nu,a,0,,click\n")
    result = CliRunner().invoke(app, ["demo", "--seeds", "2", "--seed", "7", "--data", str(data), "--out", str(out)])
    assert result.exit_code == 1
    assert "the demo of seed 7 ended with exit code 1" in result.output
    assert "items.jsonl:2" in capfd.readouterr().out


def test_a_data_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "--data" in result.output
    assert "doesnotexist" in "".join(result.output.replace("│", "").split())  # the frame wraps lines
    assert not (tmp_path / "out").exists()
