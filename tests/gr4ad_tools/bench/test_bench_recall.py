"""The recall benchmark: what it says of lists made by hand, of short lists, and of a policy that it trains."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.learning.checkpoint import load_checkpoint
from gr4ad_core.learning.held_out import target_positions
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.sid.trie import LiveTrie
from gr4ad_tools.bench import app
from gr4ad_tools.bench.held_out_policy import BEAM_WIDTHS, ad_table, held_out_targets, read_split
from gr4ad_tools.bench.recall import command
from gr4ad_tools.bench.recall.answers import PATHS, PLAIN, REFERENCE, WIDTH, Answers, K, answer, search_of
from gr4ad_tools.bench.recall.comparison import recall_figures
from gr4ad_tools.simulate import SCENARIOS, Market
from typer.testing import CliRunner

from tests.oracles.plain_decoder import PlainDecoder
from tests.oracles.plain_decoder_cases import THREE_LEVELS, random_history, random_model, random_sids

USERS = 2000


def answers_by_lot(rng: np.random.Generator) -> Answers:
    best_MKT = np.stack([rng.permutation(500)[: 3 * K].reshape(K, 3) for _ in range(USERS)])
    return Answers(rng.integers(0, 2 * WIDTH, USERS).clip(max=WIDTH), best_MKT, rng.uniform(1e3, 2e3, USERS))


def test_differences_are_paired_over_users() -> None:
    reference = answers_by_lot(np.random.default_rng(0))
    hits = np.flatnonzero(reference.position_M < K)
    worse = replace(reference, position_M=reference.position_M.copy(), ecpm_M=0.97 * reference.ecpm_M)
    worse.position_M[hits[:10]] = K  # still in the list
    worse.position_M[hits[10:13]] = WIDTH
    figures = recall_figures({REFERENCE: reference, "bfloat16": worse})
    assert figures["recall@10_f32"].value == len(hits) / USERS
    assert figures["recall@10_bf16"].value == pytest.approx((len(hits) - 13) / USERS)
    assert figures["recall@10_bf16_diff_pct"].value == pytest.approx(-100.0 * 13 / len(hits))
    # Thirteen users decide, so the interval is that of a Poisson count; unpaired, it would be several times as wide.
    low, high = (-100.0 * (13 + sign * 1.96 * 13**0.5) / len(hits) for sign in (1, -1))
    assert figures["recall@10_bf16_diff_ci_low"].value == pytest.approx(low, rel=0.2)
    assert figures["recall@10_bf16_diff_ci_high"].value == pytest.approx(high, rel=0.3)
    in_list = int((reference.position_M < WIDTH).sum())
    assert figures["recall@128_bf16_diff_pct"].value == pytest.approx(-100.0 * 3 / in_list)
    for end in ("pct", "ci_low", "ci_high"):
        assert figures[f"ecpm@10_bf16_diff_{end}"].value == pytest.approx(-3.0)
    assert {figure.n for figure in figures.values()} == {USERS}


def test_lists_overlap_in_whatever_order() -> None:
    reference = answers_by_lot(np.random.default_rng(1))
    other = replace(reference, best_MKT=reference.best_MKT[:, ::-1].copy())
    other.best_MKT[: USERS // 2, :3] += 500  # three others in half of the lists
    figures = recall_figures({REFERENCE: reference, PLAIN: other})
    assert figures["overlap@10_plain"].value == pytest.approx(0.85)
    assert figures["overlap@10_plain"].min == pytest.approx(0.7)
    short = replace(reference, best_MKT=np.where(np.arange(K)[:, None] < 4, reference.best_MKT, -1))
    assert recall_figures({REFERENCE: short, PLAIN: short})["overlap@10_plain"].value == 1.0


def test_a_policy_without_values_gives_no_figure_of_them() -> None:
    reference = replace(answers_by_lot(np.random.default_rng(2)), ecpm_M=np.full(USERS, 7.0))
    assert not any("ecpm" in name for name in recall_figures({REFERENCE: reference, PLAIN: reference}))


def three_targets(model: LazyAr, sids_AT: np.ndarray) -> TrainingSet:
    """The first two ads, and the SID of all last codes, as targets of three users."""
    rng = np.random.default_rng(3)
    histories = [random_history(model.config, 4, rng) for _ in range(3)]
    targets_MT = np.concatenate([sids_AT[:2], [np.array(model.config.level_sizes) - 1]])
    ones_M = np.ones(3, np.int64)
    return TrainingSet.from_lists(histories, [0, 1, 2], np.arange(3), targets_MT, ones_M, 1.0 * ones_M, sids_AT)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_tells_short_lists_and_misses_alike(path: str) -> None:
    model = random_model(replace(THREE_LEVELS, level_sizes=(4, 3, 4)))
    sids_AT = np.array([[0, 1, 2], [0, 1, 3], [2, 0, 0], [3, 1, 3]])
    targets = three_targets(model, sids_AT)
    answers = answer(path, model, targets)
    assert (answers.position_M[:2] < len(sids_AT)).all()
    assert answers.position_M[2] == WIDTH
    for row, best_KT in enumerate(answers.best_MKT):
        assert sorted(best_KT[: len(sids_AT)].tolist()) == sids_AT.tolist()
        assert (best_KT[len(sids_AT) :] == -1).all()
        if row < 2:
            np.testing.assert_array_equal(best_KT[answers.position_M[row]], targets.target_sids_MT[row])
    decoder = PlainDecoder(model)
    history = random_history(model.config, 4, np.random.default_rng(3))
    expected = np.mean([decoder.expected_ecpm(history, tuple(sid)) for sid in sids_AT.tolist()])
    assert answers.ecpm_M[0] == pytest.approx(expected, rel=1e-4)


def test_paths_compute_as_they_are_named_and_leave_the_policy_as_it_is() -> None:
    model = random_model(THREE_LEVELS)
    before = copy.deepcopy(model.state_dict())
    targets = three_targets(model, random_sids(THREE_LEVELS, 60, np.random.default_rng(4)))
    trie = TorchTrie.from_view(LiveTrie.build(targets.ad_sids_AT, THREE_LEVELS.level_sizes).view, "cpu")
    inputs = targets.batch(np.arange(3), THREE_LEVELS).inputs
    with torch.inference_mode():
        found = {path: search_of(path, model)(inputs, trie).log_probs_BW[:, :60] for path in PATHS}
    torch.testing.assert_close(found[PLAIN], found[REFERENCE], atol=1e-4, rtol=1e-4)
    for path in set(PATHS) - {PLAIN, REFERENCE}:
        assert not torch.allclose(found[path], found[REFERENCE], atol=1e-4, rtol=1e-4), path
    torch.testing.assert_close(dict(model.state_dict()), dict(before), atol=0, rtol=0)


def run(out: Path, *arguments: str) -> dict[str, dict[str, float]]:
    command_line = ["recall", "--preset", "tiny", "--threads", "1", "--out", str(out), "--json", *arguments]
    result = CliRunner().invoke(app, command_line)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads((out / "summary.json").read_text()) == document
    figures: dict[str, dict[str, float]] = document["figures"]
    return figures


def test_measures_every_path_and_goes_on_where_it_was(tmp_path: Path) -> None:
    data, out = tmp_path / "market", tmp_path / "out"
    Market("tiny", 1).write_folder(data)
    first = run(out, "--data", str(data))
    model, _ = load_checkpoint(out / "policy")
    items, split = read_split(data, seed=0)
    position_M = target_positions(
        model, held_out_targets(split, ad_table(items, np.load(out / "sids.npy"))), BEAM_WIDTHS
    )
    for cut in (K, WIDTH):
        engine, plain = first[f"recall@{cut}_f32"], first[f"recall@{cut}_plain"]
        assert 0.0 < engine["value"] < 1.0
        assert engine["value"] == pytest.approx((position_M < cut).mean())
        assert engine["n"] == len(split.users_M) > 20
        assert plain["value"] == engine["value"]
        assert first[f"recall@{cut}_plain_diff_pct"]["value"] == 0.0
        ratio = first[f"recall@{cut}_bf16"]["value"] / engine["value"]
        assert first[f"recall@{cut}_bf16_diff_pct"]["value"] == pytest.approx(100.0 * (ratio - 1.0))
    assert first["overlap@10_plain"]["value"] == 1.0
    assert 0.8 < first["overlap@10_bf16"]["value"] <= 1.0
    assert first["ecpm@10_plain"]["value"] == pytest.approx(first["ecpm@10_f32"]["value"])

    state = json.loads((out / "state.json").read_text())
    state["finished"] = False
    del state["results"][PLAIN]
    (out / "state.json").write_text(json.dumps(state))
    with np.load(out / "float32.npz") as kept:
        everyone_hit = {**kept, "position_M": np.zeros_like(kept["position_M"])}
    np.savez(out / "float32.npz", **everyone_hit)
    second = run(out, "--data", str(data))
    assert second["recall@10_f32"]["value"] == 1.0
    assert second["recall@10_plain"] == first["recall@10_plain"]


def test_without_data_it_generates_a_market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "GENERATED", SCENARIOS["tiny"]())
    figures = run(tmp_path / "out")
    _, split = read_split(tmp_path / "out" / "market", seed=0)
    assert figures["recall@10_f32"]["n"] == len(split.users_M)
    assert figures["overlap@10_plain"]["value"] == 1.0


def test_says_what_is_wrong(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "items.jsonl").write_text('{"item_id": "a", "title": "a"}\n{"item_id": "b", "title": "b"}\n')
    rows = "u,a,0,1,click\nu,b,1,2,click\n"
    (data / "interactions.csv").write_text("user_id,item_id,position,timestamp,event_type\n" + rows)
    for arguments, message in (
        (["--preset", "huge"], "--preset: huge: choose of tiny, demo, default"),
        (["--data", str(data)], "no user has three clicks or conversions: give longer histories"),
    ):
        result = CliRunner().invoke(app, ["recall", *arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert message in result.output

    (data / "items.jsonl").write_text("no JSON\n")
    result = CliRunner().invoke(app, ["recall", "--data", str(data), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "items.jsonl:1: " in result.output
