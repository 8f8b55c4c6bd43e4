"""The comparison of indexes: the catalogue it draws, that every index is held to the same answers, what it reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.sid.trie import LiveTrie
from gr4ad_tools.bench import app, index
from gr4ad_tools.bench.index import BASELINES, LEVEL_SIZES, Workload, WrongAnswerError, measure, short
from gr4ad_tools.bench.sid_indexes import DictTrie, OurTrie, generated_sids, live_slot
from rich.progress import Progress
from typer.testing import CliRunner

from tests.oracles.brute_force_trie import BruteForceTrie

SMALL = Workload(sizes=(2_000, 6_000), compare_at=6_000, rounds=2, changes=3_000, seed=0)


@pytest.mark.parametrize("count", [3_000, 30_001])
def test_generated_sids_are_distinct_and_three_behind_each_prefix(count: int) -> None:
    sids = generated_sids(count, LEVEL_SIZES, np.random.default_rng(1))
    assert sids.shape == (count, 3)
    assert (sids >= 0).all()
    assert (sids < LEVEL_SIZES).all()
    np.testing.assert_array_equal(sids, np.unique(sids, axis=0))
    _, fan_outs = np.unique(sids[:, :2], axis=0, return_counts=True)
    assert fan_outs.mean() == pytest.approx(3.0, abs=0.001)
    assert fan_outs.min() == 1
    assert fan_outs.max() > 9  # some prefixes are crowded


def test_every_index_finds_what_brute_force_finds() -> None:
    sids = generated_sids(300, (16, 32, 64), np.random.default_rng(2))
    oracle = BruteForceTrie(sids)
    chosen = np.array([5, 0, 99, 42])
    prefixes = [oracle.prefixes(2)[number] for number in chosen]
    expected = [(row, code) for row, prefix in enumerate(prefixes) for code in oracle.children(prefix)]
    for make in (OurTrie, *BASELINES.values()):
        made = make(sids, (16, 32, 64))
        parents, codes = made.pairs(made.step(made.prefixes(chosen)))
        assert list(zip(parents.tolist(), codes.tolist(), strict=True)) == expected, make.__name__


def test_a_single_look_up_finds_the_slot() -> None:
    trie = LiveTrie.build(np.array([[0, 1, 2], [0, 1, 3], [1, 0, 0]]), (2, 2, 4))
    assert [live_slot(trie, sid) for sid in ((0, 1, 3), (0, 1, 1), (1, 1, 0), (1, 0, 0))] == [1, None, None, 2]


def test_an_index_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(DictTrie):
        def step(self, prefixes):  # type: ignore[no-untyped-def]
            parents, codes = super().step(prefixes)
            return parents[:-1], codes[:-1]

    monkeypatch.setattr(index, "BASELINES", {**BASELINES, "dict": Forgetful})
    with Progress(disable=True) as bar, pytest.raises(WrongAnswerError, match="index 6e3_dict gave other pairs"):
        measure(SMALL, bar)


def test_a_change_that_shows_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveTrie, "remove", lambda trie, sid: True)
    with Progress(disable=True) as bar, pytest.raises(WrongAnswerError, match="removed, and found by the next look-up"):
        measure(SMALL, bar)


def test_sizes_are_named_as_figures_name_them() -> None:
    assert [short(count) for count in (10_000, 1_000_000, 10_000_000)] == ["1e4", "1e6", "1e7"]


def test_the_command_prints_figures_and_keeps_them(tmp_path: Path) -> None:
    arguments = ["--sizes", "2000,6000", "--compare-at", "6000", "--rounds", "3", "--changes", "500", "--json"]
    result = CliRunner().invoke(app, ["index", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    steps = {"step_us_2e3", "step_us_6e3", *(f"step_us_6e3_{name}" for name in ("dict", "bisect", "csr"))}
    assert steps | {"insert_us_p99", "remove_us_p99", "bytes_per_ad"} <= set(document["figures"])
    assert document["figures"]["step_us_6e3"]["n"] == 3
    assert document["figures"]["bytes_per_ad"]["n"] == 6000
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == document


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    for arguments in (["--sizes", "2000"], ["--sizes", "100,1000000"]):
        result = CliRunner().invoke(app, ["index", *arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert "give sizes from 1536 on, --compare-at 1000000 among them" in " ".join(result.output.split())
