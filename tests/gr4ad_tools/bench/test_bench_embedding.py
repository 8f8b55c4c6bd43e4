import json
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.learning.interaction_rows import CONVERSION, Interactions
from gr4ad_tools.bench.embedding import embedding_figures
from gr4ad_tools.bench.held_out_policy import shuffle_ties
from gr4ad_tools.cli import app
from gr4ad_tools.simulate import Market
from typer.testing import CliRunner


def test_ties_are_shuffled_and_nothing_else_moves() -> None:
    times = np.array([1.0, 2.0, 2.0, 2.0, 3.0, np.nan, np.nan, 3.0, 3.0])
    interactions = Interactions(
        user_ids=["a", "b"],
        offsets=np.array([0, 7, 9]),
        item_ids=[str(item) for item in range(9)],
        items=np.arange(9),
        behaviors=np.full(9, CONVERSION),
        timestamps=times,
    )
    seen = set()
    for seed in range(40):
        shuffled = shuffle_ties(interactions, seed)
        np.testing.assert_array_equal(shuffled.timestamps, times)
        assert shuffled.items[[0, 4, 5, 6]].tolist() == [0, 4, 5, 6]
        assert sorted(shuffled.items[1:4]) == [1, 2, 3]
        assert sorted(shuffled.items[7:]) == [7, 8], "another user's events of the same time are another tie"
        seen.add(tuple(shuffled.items.tolist()))
    assert len(seen) == 6 * 2


def test_the_lift_is_paired_over_users() -> None:
    rng = np.random.default_rng(0)
    content = rng.random(2000) < 0.3
    better = content | (rng.random(2000) < 0.02)  # every user of the one arm is served as well by the other
    found = {
        (arm, seed): {"recall": {str(user): bool(hit) for user, hit in enumerate(hits)}}
        for arm, hits in (("content", content), ("head", better))
        for seed in range(2)
    }
    figures = embedding_figures(found, 2)
    assert figures["recall@10_content"].value == pytest.approx(content.mean())
    assert figures["recall@10_head"].n == 4000
    assert figures["recall@10_lift_pct"].value == pytest.approx(100.0 * (better.mean() / content.mean() - 1.0))
    assert 0.0 < figures["recall@10_lift_ci_low"].value < figures["recall@10_lift_pct"].value
    assert "cobought_recall@10_head" not in figures


def test_measures_both_arms_and_goes_on_where_it_was(tmp_path: Path) -> None:
    Market("tiny", 1).write_folder(tmp_path / "market")
    out = tmp_path / "out"
    command = ["bench", "embedding", "--data", str(tmp_path / "market"), "--seeds", "1", "--preset", "tiny"]
    command += ["--threads", "1", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    first = json.loads((out / "summary.json").read_text())["figures"]
    for name in ("cobought_recall@10", "recall@10"):
        for arm in ("content", "head"):
            assert 0.0 < first[f"{name}_{arm}"]["value"] < 1.0
            assert first[f"{name}_{arm}"]["n"] > 20

    state = json.loads((out / "state.json").read_text())
    state["finished"] = False
    state["results"]["head-0"]["recall"] = dict.fromkeys(state["results"]["head-0"]["recall"], True)
    (out / "state.json").write_text(json.dumps(state))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "summary.json").read_text())["figures"]["recall@10_head"]["value"] == 1.0


def test_a_preset_that_is_none_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "embedding", "--data", str(tmp_path), "--preset", "huge"])
    assert result.exit_code == 1
    assert "--preset: huge: choose of tiny, demo, default" in result.output
