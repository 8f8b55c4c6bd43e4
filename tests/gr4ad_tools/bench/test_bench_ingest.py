import json
from pathlib import Path

import pytest
from gr4ad_tools.bench import ingest
from gr4ad_tools.bench.ingest import campaigns
from gr4ad_tools.cli import app
from gr4ad_tools.simulate import Market
from typer.testing import CliRunner


def test_measures_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SCENARIO", "tiny")
    command = [
        "bench",
        "ingest",
        "--ads",
        "300",
        "--batch-size",
        "20",
        "--writers",
        "3",
        "--out",
        str(tmp_path),
        "--json",
    ]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert figures["ingest_ads_per_s"]["n"] == 300
    assert figures["ingest_ads_per_s"]["value"] == pytest.approx(300 / figures["ingest_seconds"]["value"])
    assert figures["ingest_batch_ms_p99"]["n"] == 15


def test_campaigns_are_ads_of_their_own(tmp_path: Path) -> None:
    Market("tiny", 0).write_folder(tmp_path)
    items = ingest.read_items(tmp_path)
    ads = campaigns(items, 2 * len(items) + 1)
    assert len({ad.item_id for ad in ads}) == len(ads)
    assert ads[0].description == ads[len(items)].description
    assert ads[0].title != ads[len(items)].title
