"""The demo over several seeds: a run each, their means, and no run done twice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from gr4ad_tools.demo import seeds
from gr4ad_tools.demo.record import Record
from gr4ad_tools.demo.run import DemoOptions
from rich.console import Console

QUIET = Console(quiet=True)


class Runs:
    """Stands for the demo: notes the seeds, fails for one of them once, and earns ten times the seed."""

    def __init__(self, failing: int = -1) -> None:
        self.seeds: list[int] = []
        self.failing = failing

    async def __call__(self, options: DemoOptions, console: Console) -> tuple[dict[str, Any], Record]:
        if options.seed == self.failing:
            self.failing = -1
            raise KeyboardInterrupt
        self.seeds.append(options.seed)
        assert options.out.name == f"seed-{options.seed}"
        options.out.mkdir(parents=True)
        figures = {"rpm": {"value": 10.0 * options.seed, "unit": "units"}, "seconds": {"value": 1.0, "unit": "s"}}
        if options.seed == 4:
            figures["odd"] = {"value": 1.0, "unit": ""}
        return {"figures": figures}, Record()


def test_every_seed_is_run_once_and_the_means_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(failing=5)
    monkeypatch.setattr(seeds, "run_demo", runs)
    options = DemoOptions(None, tmp_path / "out", seed=3, preset="", command="gr4ad demo --seeds 3")
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(seeds.run_seeds(options, 3, QUIET))
    assert not (tmp_path / "out" / "summary.json").exists()
    document = asyncio.run(seeds.run_seeds(options, 3, QUIET))
    assert runs.seeds == [3, 4, 5]
    rpm = document["figures"]["rpm"]
    assert (rpm["value"], rpm["min"], rpm["max"], rpm["n"], rpm["unit"]) == (40.0, 30.0, 50.0, 3, "units")
    assert set(document["figures"]) == {"rpm", "seconds"}  # a figure that one run lacks has no mean
    assert document["seeds"] == [3, 4, 5]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["figures"] == document["figures"]
