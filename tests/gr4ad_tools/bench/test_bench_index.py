import json
from pathlib import Path

import numpy as np
import pytest
from gr4ad_tools.bench.index import LEVEL_SIZES, Workload, measure, short
from gr4ad_tools.bench.sid_indexes import DictTrie, FrozenCsr, OurTrie, SortedSids, generated_sids
from gr4ad_tools.cli import app
from rich.progress import Progress
from typer.testing import CliRunner


def test_generated_sids_are_distinct_and_have_the_fan_out() -> None:
    sids_NT = generated_sids(3000, LEVEL_SIZES, np.random.default_rng(0))
    assert len(np.unique(sids_NT, axis=0)) == len(sids_NT) == 3000
    assert len(np.unique(sids_NT[:, :2], axis=0)) == 1000
    assert (sids_NT < LEVEL_SIZES).all()


@pytest.mark.parametrize("make", [OurTrie, DictTrie, FrozenCsr, SortedSids])
def test_every_index_gives_the_pairs_that_a_scan_finds(make: type) -> None:
    sids_NT = generated_sids(600, LEVEL_SIZES, np.random.default_rng(1))
    pairs_P2 = np.unique(sids_NT[:, :2], axis=0)
    chosen_P = np.array([7, 199, 0, 42])
    index = make(sids_NT, LEVEL_SIZES)
    number_E, code_E = index.pairs(index.step(index.prefixes(chosen_P)))
    scanned = [
        (number, code)
        for number, chosen in enumerate(chosen_P)
        for a, b, code in sids_NT.tolist()
        if (a, b) == tuple(pairs_P2[chosen])
    ]
    assert list(zip(number_E.tolist(), code_E.tolist(), strict=True)) == scanned


def test_the_command_prints_what_it_measured(tmp_path: Path) -> None:
    command = ["bench", "index", "--sizes", "3000,6000", "--compare-at", "6000", "--rounds", "5", "--changes", "200"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "summary.json").read_text())["figures"]
    for name in ("step_us_3e3", "step_us_6e3_dict", "step_us_6e3_bisect", "step_us_6e3_csr", "remove_us_p99"):
        assert figures[name]["value"] > 0.0
    assert figures["step_us_6e3"]["n"] == 5
    assert figures["insert_us_p99"]["n"] > 150
    assert figures["bytes_per_ad"]["value"] > 8.0


def test_too_small_a_size_is_named() -> None:
    result = CliRunner().invoke(app, ["bench", "index", "--sizes", "100", "--compare-at", "100"])
    assert result.exit_code == 1
    assert "--sizes: 100: give sizes from 1536 on" in result.output


def test_a_change_that_does_not_show_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    from gr4ad_core.sid.trie import LiveTrie
    from gr4ad_tools.bench.index import WrongAnswerError

    monkeypatch.setattr(LiveTrie, "remove", lambda self, sid: False)
    with Progress(disable=True) as bar, pytest.raises(WrongAnswerError, match="removed, and found"):
        measure(Workload((3000,), 3000, 1, 60, 0), bar)


def test_sizes_have_short_names() -> None:
    assert [short(size) for size in (10**4, 10**7, 3000)] == ["1e4", "1e7", "3e3"]
