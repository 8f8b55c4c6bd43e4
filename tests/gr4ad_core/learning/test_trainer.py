"""Training: it learns, repeats by seed, reports, stops, and measures on what it did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gr4ad_core.decoding.beam_search import beam_search
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.learning.held_out import first_hit, held_out_metrics
from gr4ad_core.learning.presets import PRESETS, training_preset
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.learning.train_step import DivergedError, TrainStep, rate_at
from gr4ad_core.learning.trainer import REPORTS, Progress, TrainingStoppedError, train_vsl
from gr4ad_core.learning.vsl import VslConfig
from gr4ad_core.model.lazy_ar import LazyAr
from gr4ad_core.sid.trie import LiveTrie

LEVEL_SIZES = (6, 5, 4)
MODEL, RECIPE = training_preset("tiny", LEVEL_SIZES)


def weights_of(model: LazyAr) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def policy():
    from tests.gr4ad_core.learning.conftest import topic_ads, topic_interactions

    samples = TrainingSet.from_interactions(topic_interactions(400), topic_ads())
    reports: list[Progress] = []
    return train_vsl(samples, MODEL, replace(RECIPE, epochs=3), seed=3, on_progress=reports.append), reports, samples


def test_tiny_recipe_learns_the_walk_through_a_topic(policy):
    trained, _, _ = policy
    # 60 ads: chance has recall@5 of 0.083, the topic alone 0.5.
    assert trained.metrics["held_out_recall@5"] > 0.85
    assert trained.metrics["held_out_samples"] == RECIPE.validation_users
    assert trained.losses[-1][1] < 0.6 * trained.losses[0][1]
    assert not trained.model.training


def test_progress_rises_to_the_last_step_and_matches_the_curve(policy):
    trained, reports, _ = policy
    assert [report.step for report in reports] == sorted({report.step for report in reports})
    assert reports[-1].step == reports[-1].total_steps == trained.metrics["steps"]
    assert [(report.step, report.loss) for report in reports] == trained.losses
    assert len(reports) <= 2 * REPORTS


def test_value_buckets_are_those_of_the_labels(policy):
    trained, _, samples = policy
    model = trained.model
    assert (model.ecpm_means.diff() > 0).all()
    assert (model.ecpm_means[:-1] <= model.ecpm_edges).all()
    assert (model.ecpm_means[1:] > model.ecpm_edges).all()
    assert samples.value_micros_M.min() <= model.ecpm_means[0]


def test_same_seed_gives_the_same_weights_and_leaves_the_callers_generator_alone(training_set):
    recipe = replace(RECIPE, epochs=1)
    model = replace(MODEL, dropout=0.3)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    runs = [weights_of(train_vsl(training_set, model, recipe, seed).model) for seed in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_stop_is_obeyed_before_the_next_step(training_set):
    asked = iter([False, False, True])
    with pytest.raises(TrainingStoppedError, match=r"stopped on request after 2 of"):
        train_vsl(training_set, MODEL, RECIPE, 0, should_stop=lambda: next(asked))


def test_threads_are_restored(training_set):
    before = torch.get_num_threads()
    with pytest.raises(TrainingStoppedError):
        train_vsl(training_set, MODEL, RECIPE, 0, should_stop=lambda: True, threads=before + 1)
    assert torch.get_num_threads() == before


def test_equal_values_make_a_model_with_one_bucket(training_set):
    flat = replace(training_set, value_micros_M=np.full(len(training_set), 4e9))
    model = train_vsl(flat, MODEL, replace(RECIPE, epochs=1), 0).model
    assert model.config.n_ecpm_buckets == 1
    assert model.ecpm_means.tolist() == [4e9]


def test_impressions_left_out_shorten_the_epoch(training_set):
    def steps(share: float) -> float:
        reports: list[Progress] = []
        recipe = replace(RECIPE, epochs=1, batch_size=1, impression_share=share, validation_users=0)
        with pytest.raises(TrainingStoppedError):
            train_vsl(training_set, MODEL, recipe, 0, reports.append, should_stop=lambda: bool(reports))
        return reports[0].total_steps

    assert steps(1.0) == len(training_set)
    assert steps(0.0) == (training_set.behaviors_M != 1).sum()


def test_nothing_left_to_train_on_is_refused(training_set):
    impressions = training_set.select(np.flatnonzero(training_set.behaviors_M == 1))
    with pytest.raises(ValueError, match=r"impression_share: 0\.0: leaves no sample"):
        train_vsl(impressions, MODEL, replace(RECIPE, impression_share=0.0), 0)


def test_divergence_names_the_rate_and_keeps_the_weights(training_set):
    model = LazyAr(MODEL)
    with torch.no_grad():
        model.position.fill_(float("nan"))
    step = TrainStep(model, RECIPE, total_steps=10)
    before = model.bos.detach().clone()
    batch = training_set.batch(np.arange(4), MODEL)
    with pytest.raises(DivergedError, match=r"loss: nan at step 0: .*lower learning_rate"):
        step(batch, torch.zeros(4, dtype=torch.int64), torch.ones(4))
    assert torch.equal(model.bos, before)


def test_rate_rises_then_falls_to_its_share():
    config = VslConfig(learning_rate=1.0, warmup_share=0.1, final_rate_share=0.05)
    rates = [rate_at(step, 1000, config) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert int(np.argmax(rates)) in (99, 100)
    assert (np.diff(rates[100:]) < 0).all()
    assert rates[-1] == pytest.approx(0.05, abs=1e-4)


def test_held_out_figures_equal_the_search_by_hand(policy):
    trained, _, samples = policy
    some = samples.select(np.arange(0, 200, 10))
    metrics = held_out_metrics(trained.model, some, RECIPE)
    trie = TorchTrie.from_view(LiveTrie.build(samples.ad_sids_AT, LEVEL_SIZES).view, "cpu")
    hits = []
    for i in range(len(some)):
        batch = some.batch(np.array([i]), MODEL)
        with torch.no_grad():
            context = trained.model.encode_context(batch.inputs)
            candidates = beam_search(trained.model, context, trie, (8, 16, 16)).sids_BWT[0].tolist()
        hits.append(batch.sids_BT[0].tolist() in candidates[:5])
    assert metrics["held_out_recall@5"] == pytest.approx(np.mean(hits))
    assert metrics["held_out_ndcg@5"] <= metrics["held_out_recall@5"]


def test_first_hit_counts_valid_candidates_only():
    sids_BWT = torch.tensor([[[1, 2], [3, 4]], [[1, 2], [3, 4]], [[1, 2], [3, 4]]])
    valid_BW = torch.tensor([[True, True], [True, False], [True, True]])
    target_BT = torch.tensor([[3, 4], [3, 4], [1, 4]])
    assert first_hit(sids_BWT, valid_BW, target_BT).tolist() == [1, 2, 2]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_a_trunk_and_a_decoder(name):
    model, _ = training_preset(name, (32, 16, 8))
    assert model.level_sizes == (32, 16, 8)
    assert 0 < model.n_lazy < model.n_layers
    if name != "tiny":
        assert model.n_layers >= 6
        assert model.n_lazy * 3 >= model.n_layers * 2  # at least the share that method.md §2.2 shares among the beams


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"preset: huge: give one of tiny, demo, default"):
        training_preset("huge", (4, 4))
