"""The decode benchmark: its workload, that every variant finds the engine's SIDs, its arithmetic, what it reports."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from gr4ad_core.model import packed_linear
from gr4ad_core.model.compute_type import in_hardware
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.context import collate_contexts
from gr4ad_tools.bench import app
from gr4ad_tools.bench.decode import turns
from gr4ad_tools.bench.decode.comparisons import lower_types
from gr4ad_tools.bench.decode.exact_search import ExactSearch
from gr4ad_tools.bench.decode.flops import decode_flops
from gr4ad_tools.bench.decode.plain_search import Tricks, plain_beam_search
from gr4ad_tools.bench.decode.t5_generate import MissingTransformersError, T5Generate
from gr4ad_tools.bench.decode.turns import in_turn, ratio
from gr4ad_tools.bench.decode.workload import (
    BATCHES,
    LEAST_FAN_OUT,
    Setting,
    Workload,
    decode,
    drawn_sids,
    perplexities,
)
from rich.progress import Progress
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.oracles.brute_force_trie import BruteForceTrie
from tests.oracles.naive_beam import naive_beam_search
from tests.oracles.plain_decoder import PlainDecoder
from tests.oracles.plain_decoder_cases import THREE_LEVELS, random_history, random_model

CONFIG = LazyArConfig(
    level_sizes=(64, 32, 16), d_model=32, n_heads=4, n_layers=3, n_lazy=2, d_ff=64, kv_groups=3, max_history=5
)
WIDTHS = (8, 12, 20)
VARIANTS = [Tricks(*on) for on in product([True, False], repeat=3)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]


def workload(config: LazyArConfig = CONFIG, device: str = "cpu") -> Workload:
    return Workload.draw(Setting(config, ads=1_500, widths=WIDTHS, batch=3, seed=1, device=device))


def test_all_of_a_workload_is_on_its_device() -> None:
    work = workload(device="meta")  # tensors without content, wherever the test runs
    inputs = [value for each in (*work.batches, *work.single_requests) for value in vars(each).values()]
    trie = [work.trie.root_1, *work.trie.codes, *work.trie.links]
    policies = [*work.model.state_dict().values(), *work.policy(n_lazy=0).state_dict().values()]
    assert {value.device.type for value in (*inputs, *trie, *policies)} == {"meta"}


@pytest.mark.parametrize("ads", [10_000, 100_000, 1_000_000])
def test_live_prefixes_have_the_fan_out_that_is_said(ads: int) -> None:
    sids = drawn_sids(ads, (4096, 1024, 256), np.random.default_rng(0))
    assert len(np.unique(sids, axis=0)) == len(sids) == ads
    assert (sids >= 0).all()
    assert (sids < (4096, 1024, 256)).all()
    live = [len(np.unique(sids[:, :length], axis=0)) for length in (1, 2, 3)]
    assert live[1] / live[0] >= LEAST_FAN_OUT
    assert live[2] / live[1] >= LEAST_FAN_OUT


def test_sids_that_find_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match="give fewer ads"):
        drawn_sids(100, (4, 4, 4), np.random.default_rng(0))
    with pytest.raises(ValueError, match="give powers of two"):
        drawn_sids(10, (4, 5, 4), np.random.default_rng(0))


def test_distributions_are_neither_uniform_nor_a_single_code() -> None:
    for perplexity, size in zip(perplexities(workload()), CONFIG.level_sizes, strict=True):
        assert 1.2 < perplexity < 0.6 * size


@pytest.mark.parametrize("n_lazy", [2, 0])
@pytest.mark.parametrize("tricks", VARIANTS, ids=str)
@pytest.mark.parametrize("widths", [WIDTHS, (20, 20, 20), (8, 3, 2)])
def test_every_variant_finds_what_the_engine_finds(tricks: Tricks, n_lazy: int, widths: tuple[int, ...]) -> None:
    work = workload(replace(CONFIG, n_lazy=n_lazy))
    engine = work.decode(0, widths=widths)
    with torch.inference_mode():
        context = work.model.encode_context(work.batches[0])
    found = plain_beam_search(work.model, context, work.trie, widths, tricks)
    assert engine.valid_BW.all()
    torch.testing.assert_close(found.log_probs_BW, engine.log_probs_BW, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.sids_BWT, engine.sids_BWT, atol=0, rtol=0)


def test_lists_in_lower_precision_are_nearly_those_in_float32() -> None:
    work = workload()
    models = {kind: work.served(each) for kind, each in lower_types(work).items()}
    assert set(models) == {"bf16", "int8"}
    for kind, least in (("bf16", 0.95), ("int8", 0.9)):
        shares = []
        for number in range(BATCHES):
            mine, theirs = work.decode(number, model=models[kind]), work.decode(number)
            pairs = zip(mine.slots_BW.tolist(), theirs.slots_BW.tolist(), strict=True)
            shares += [len(set(a) & set(b)) / len(b) for a, b in pairs]
        assert least < np.mean(shares) < 1.0, kind


def test_the_exact_search_finds_what_the_naive_one_finds() -> None:
    rng = np.random.default_rng(2)
    model = random_model(THREE_LEVELS)
    sids = np.stack(np.unravel_index(rng.choice(210, 60, replace=False), THREE_LEVELS.level_sizes), axis=1)
    history = random_history(THREE_LEVELS, 4, rng)
    inputs = collate_contexts([history], THREE_LEVELS)
    search = ExactSearch(model, sids)
    exact = search.find(inputs, (4, 6, 5))
    expected = naive_beam_search(PlainDecoder(model), history, BruteForceTrie(sids), (4, 6, 5))
    assert list(exact.log_probs) == [sid for sid, _ in expected]
    np.testing.assert_allclose(list(exact.log_probs.values()), [log_p for _, log_p in expected], atol=1e-6)
    assert exact.cuts[-1] == pytest.approx(expected[-1][1], abs=1e-6)
    found = list(exact.log_probs)
    assert search.overlap(inputs, exact, found) == 1.0
    missed = next(sid for sid in map(tuple, sids.tolist()) if sid[0] not in {kept[0] for kept in found})
    assert search.overlap(inputs, exact, [*found[:-1], missed]) == pytest.approx(0.8)


@pytest.mark.parametrize("n_lazy", [2, 0])
def test_arithmetic_is_what_torch_counts(n_lazy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work = workload(replace(CONFIG, n_lazy=n_lazy))
    monkeypatch.setattr(packed_linear, "can_pack", lambda weight: False)  # the counter knows torch's own products only
    work.engine.requires_grad_(False)  # it hooks into gradients, which inference mode has none of
    # The fused attention of CPUs is unknown to torch's counter: let it see the two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decode(work.engine, work.batches[0], work.trie, WIDTHS)
    assert counter.get_total_flops() == decode_flops(work.model.config, 3, CONFIG.max_history, WIDTHS)


def test_generate_writes_live_sids_once() -> None:
    work = workload()
    t5 = T5Generate(CONFIG, work.sids_NT, seed=0)
    sids = list(map(tuple, t5.generate(t5.prompt(work.batches[0].sids_BST[0]), beams=12).tolist()))
    assert len(set(sids)) == 12
    assert set(sids) <= set(map(tuple, work.sids_NT.tolist()))


def test_generate_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingTransformersError, match="install gr4ad with the extra 'huggingface'"):
        T5Generate(CONFIG, workload().sids_NT, seed=0)


def test_steps_take_turns_and_the_first_rounds_do_not_count() -> None:
    called: list[str] = []
    with Progress(disable=True) as bar:
        seconds = in_turn({"a": lambda n: called.append(f"a{n}"), "b": lambda n: called.append(f"b{n}")}, 2, bar, "")
    assert called == [f"{name}{number}" for number in (-2, -1, 0, 1) for name in "aabb"]
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_a_step_on_a_gpu_ends_when_the_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: called.append("done"))
    monkeypatch.setattr(turns, "perf_counter", lambda: called.append("clock") or 0.0)
    with Progress(disable=True) as bar:
        in_turn({"a": lambda n: called.append("step")}, 1, bar, "")
    assert called[-4:] == ["clock", "step", "done", "clock"]


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    found = ratio("x", [2.0, 30.0, 8.0], [1.0, 10.0, 2.0], scale=10.0)
    assert (found["x"].value, found["x"].n, found["x"].min, found["x"].max) == (30.0, 3, 20.0, 40.0)
    assert found["x_ci_low"].value == 20.0
    assert found["x_ci_high"].value == 40.0


SMALL = ["decode", "--ads", "1500", "--level-sizes", "64,32,16", "--beams", "8,12,20", "--batch", "2", "--events", "4"]
SMALL += ["--d-model", "16", "--heads", "2", "--layers", "3", "--lazy", "2", "--sizes", "1000,4000"]
SMALL += ["--rounds", "1", "--generate-rounds", "1", "--threads", "1"]


@pytest.mark.parametrize("device", DEVICES)
def test_the_command_prints_figures_and_keeps_them(device: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*SMALL, "--device", device, "--json", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    ratios = {"lazyar", "growing", "shared_kv", "precut", "control", "total", "hf_generate"}
    expected = {f"{name}_ratio" for name in ratios} | {"gemm_share_f32", "single_ms", "ecpm_step_ms"}
    lower = lower_types(workload(device=device))
    expected |= {f"overlap_{kind}" for kind in lower}
    expected |= {"beams_80_over_5", "ads_4e3_over_1e3", "ms_events_16", "ms_layers_4", "overlap_f32"}
    timed = {kind for kind, each in lower.items() if in_hardware(each, torch.device(device))}
    expected |= {f"{kind}_ratio" for kind in timed} | {f"{kind}_batch_ms" for kind in timed}
    expected |= {f"gemm_share_{kind}" for kind in timed - {"int8"}}
    assert expected <= set(document["figures"])
    assert not any(f"{kind}_ratio" in document["figures"] for kind in lower.keys() - timed)
    assert document["figures"]["overlap_f32"]["value"] == 1.0
    assert document["figures"]["total_ratio"]["n"] == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == document


def test_the_command_shows_where_the_time_goes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*SMALL, "--profile", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "aten::" in result.stdout  # which ones lead depends on the machine
    assert "Self CPU time total" in result.stdout
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in (
        (["--device", "tpu"], "--device: tpu: choose of cpu, cuda"),
        (["--device", "cuda"], "--device: cuda: no accelerator is usable here: give --device cpu"),
        (["--only", "magic"], "--only: magic: choose of workload, tricks, total"),
        (["--level-sizes", "60,32,16"], "level_sizes: (60, 32, 16): give powers of two"),
    ):
        result = CliRunner().invoke(app, [*SMALL, *arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
