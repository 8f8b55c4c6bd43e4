"""Online learning: towards what pays, reproducible over a stop, and held back by the gate."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gr4ad_core.learning.checkpoint import CheckpointError
from gr4ad_core.learning.online import NOT_SHOWN, OnlineConfig, OnlineLearner, RewardedCandidates, collate_lists
from gr4ad_core.learning.online_state import load_online_state, save_online_state
from gr4ad_core.learning.presets import tiny
from gr4ad_core.learning.publish_gate import GateLimits, check
from gr4ad_core.learning.train_step import DivergedError
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import LazyAr

SIZES = (8, 6, 4)
ADS = 60
SHOWN = 4
N = 8
BEST = 7  # an ad that pays a hundred times what the others do


def sids() -> np.ndarray:
    codes = np.random.default_rng(0).permutation(int(np.prod(SIZES)))[:ADS]
    return np.stack(np.unravel_index(codes, SIZES), axis=1)


SIDS = sids()


@pytest.fixture
def model() -> LazyAr:
    torch.manual_seed(1)
    config, _ = tiny(SIZES)
    model = LazyAr(replace(config, n_ecpm_buckets=2, dropout=0.3))
    model.set_ecpm_buckets(torch.tensor([1.0]), torch.tensor([0.5, 50.0]))
    return model


def lists(count: int, seed: int, has_ref: bool = True, rate: float = 0.3) -> list[RewardedCandidates]:
    """Lists of random ads, the best one in each; responses fall at a rate that is the same for all."""
    rng = np.random.default_rng(seed)
    made = []
    for user in range(count):
        ads = rng.permutation(ADS)[:N]
        if BEST not in ads:
            ads[rng.integers(N)] = BEST
        value = np.where(ads == BEST, 100.0, 1.0)
        places = np.where(np.arange(N) < SHOWN, np.arange(N), NOT_SHOWN)
        responded = (rng.random(N) < rate) & (places != NOT_SHOWN)
        n = int(rng.integers(4))
        made.append(
            RewardedCandidates(
                user_key=user,
                history=UserHistory(
                    sids=SIDS[rng.integers(ADS, size=n)],
                    behaviors=np.full(n, 2),
                    event_times=np.arange(n, dtype=float),
                    request_time=9.0,
                ),
                sids_NT=SIDS[ads],
                keys_N=ads.astype(np.int64),
                log_ref_N=rng.normal(-5.0, 1.0, N) if has_ref else np.zeros(N),
                has_ref=has_ref,
                places_N=places,
                click_value_N=value,
                response_value_N=np.where(responded, value, 0.0),
            )
        )
    return made


def learner(model: LazyAr, **changes: object) -> OnlineLearner:
    return OnlineLearner(copy.deepcopy(model), OnlineConfig(**changes))


def likelihood_of_best(policy: LazyAr) -> float:
    """Mean log-likelihood of the best ad, less that of the list's others."""
    batch = lists(64, 9)
    shown = collate_lists(batch, [each.click_value_N for each in batch], policy)
    with torch.no_grad():
        log_p = policy.sid_log_probs(policy.encode_context(shown.inputs), shown.sids_BNT).numpy()
    best = np.array([each.keys_N == BEST for each in batch])
    return float(log_p[best].mean() - log_p[~best].mean())


def test_the_policy_moves_towards_what_pays_shown_or_not(model):
    online = learner(model)
    before = likelihood_of_best(online.policy)
    steps = sum(online.learn(lists(128, seed)) for seed in range(4))
    assert steps == online.steps == 16
    assert likelihood_of_best(online.policy) > before + 0.2
    assert online.totals["preference_loss"] > 0
    assert not online.policy.training


def test_dpo_moves_the_policy_too(model):
    online = learner(model, preference="dpo")
    before = likelihood_of_best(online.policy)
    for seed in range(4):
        online.learn(lists(128, seed))
    assert likelihood_of_best(online.policy) > before + 0.1


def test_nothing_moves_before_the_reward_model_has_seen_enough(model):
    online = learner(model)
    assert online.learn(lists(20, 0, rate=0.05)) == 0
    assert online.steps == 0
    for mine, theirs in zip(online.policy.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_rewards_are_rate_times_value_and_what_was_earned_for_lists_of_others(model):
    online = learner(model)
    online.learn(lists(64, 0))
    ours, others = lists(1, 5)[0], lists(1, 5, has_ref=False)[0]
    rate = online.rewards.response_rate(ours.keys_N, ours.log_ref_N, np.zeros(N, np.int64))
    np.testing.assert_allclose(online.values(ours), rate * ours.click_value_N)
    np.testing.assert_array_equal(online.values(others), others.response_value_N)
    seen = len(online.rewards.state()["keys"])
    online.learn([others])
    assert len(online.rewards.state()["keys"]) == seen


def test_lists_of_any_length_are_taken_and_single_candidates_left_out(model):
    online = learner(model, batch_lists=8)
    online.learn(lists(64, 0))
    one = lists(1, 3)[0]
    columns = ("sids_NT", "keys_N", "log_ref_N", "places_N", "click_value_N", "response_value_N")
    short, single = (replace(one, **{c: getattr(one, c)[:n] for c in columns}) for n in (3, 1))
    assert online.learn([one, short, single]) == 1
    assert online.learn([single]) == 0
    assert online.learn([]) == 0


def test_a_learner_that_was_stopped_goes_on_as_if_it_had_not_been(model, tmp_path):
    whole, stopped = learner(model), learner(model)
    for online in (whole, stopped):
        online.learn(lists(96, 0))
    save_online_state(tmp_path / "state", stopped, {"cursor": 42})
    resumed = learner(model)
    assert load_online_state(tmp_path / "state", resumed) == {"cursor": 42}
    for online in (whole, resumed):
        online.learn(lists(96, 1))
    assert resumed.steps == whole.steps
    assert resumed.totals == pytest.approx(whole.totals)
    for mine, theirs in zip(resumed.policy.parameters(), whole.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_state_from_before_the_first_step_is_whole_too(model, tmp_path):
    save_online_state(tmp_path / "state", learner(model), {})
    resumed = learner(model)
    load_online_state(tmp_path / "state", resumed)
    assert resumed.learn(lists(64, 0)) > 0


def test_an_altered_state_is_refused(model, tmp_path):
    save_online_state(tmp_path / "state", learner(model), {})
    file = tmp_path / "state" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="sha256.*create the run anew"):
        load_online_state(tmp_path / "state", learner(model))
    manifest = json.loads((tmp_path / "state" / "manifest.json").read_text())
    del manifest["learner"]
    (tmp_path / "state" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        load_online_state(tmp_path / "state", learner(model))


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(model):
    online = learner(model)
    online.learn(lists(64, 0))
    with torch.no_grad():
        online.policy.bos.fill_(float("nan"))
    before = copy.deepcopy(online.policy.state_dict())
    with pytest.raises(DivergedError, match="loss"):
        online.learn(lists(32, 1))
    for name, tensor in online.policy.state_dict().items():
        torch.testing.assert_close(tensor, before[name], equal_nan=True)


def test_going_back_restores_the_approved_weights_and_forgets_the_moments(model, tmp_path):
    online = learner(model)
    online.learn(lists(96, 0))
    online.approve()
    approved = copy.deepcopy(online.policy.state_dict())
    online.learn(lists(96, 1))
    save_online_state(tmp_path / "state", online, {})
    resumed = learner(model)
    load_online_state(tmp_path / "state", resumed)  # a new process goes back to the same weights
    for each in (online, resumed):
        assert any(not torch.equal(t, approved[name]) for name, t in each.policy.state_dict().items())
        each.go_back()
        for name, tensor in each.policy.state_dict().items():
            torch.testing.assert_close(tensor, approved[name], rtol=0, atol=0)
        assert not each._optimizer.state
    assert online.learn(lists(96, 2)) > 0


def test_the_gate_passes_a_policy_that_has_hardly_moved(model):
    online = learner(model)
    online.learn(lists(256, 0))
    report = check(online, model.eval(), lists(200, 7), SIDS, GateLimits())
    assert report.refusals == ()
    assert 0.0 < report.metrics["drift"] < 2.0
    assert 0.7 < report.metrics["calibration"] < 1.4
    assert report.metrics["ecpm_calibration"] > 0.0
    assert report.metrics["held_out_responders"] > 100


def test_the_gate_names_each_limit_that_is_passed(model):
    online = learner(model)
    online.learn(lists(256, 0))
    with torch.no_grad():
        for weight in online.policy.parameters():
            weight.add_(torch.randn_like(weight))
    held_out = [replace(each, click_value_N=each.click_value_N * (1 + 9 * ~each.responded_N)) for each in lists(200, 7)]
    start = model.eval()
    report = check(online, start, held_out, SIDS, GateLimits(recall_share=1e9))
    named = [refusal.split(":")[0] for refusal in report.refusals]
    assert named == ["drift", "calibration", "ecpm_calibration", "recall@10"]


def test_the_gate_refuses_an_ecpm_token_that_expects_far_more_than_it_did(model):
    online = learner(model)
    online.learn(lists(256, 0))
    with torch.no_grad():
        online.policy.ecpm_means.mul_(3.0)
    (refusal,) = check(online, model.eval(), lists(200, 7), SIDS, GateLimits()).refusals
    assert refusal.startswith("ecpm_calibration: expects ")


def test_the_gate_refuses_a_policy_that_is_no_number(model):
    online = learner(model)
    online.learn(lists(256, 0))
    with torch.no_grad():
        online.policy.bos.fill_(float("nan"))
    refusals = check(online, model.eval(), lists(200, 7), SIDS, GateLimits()).refusals
    assert refusals[0].startswith("drift: nan")


def test_on_too_few_responses_the_gate_goes_by_drift_alone(model):
    online = learner(model)
    report = check(online, model.eval(), lists(12, 7, rate=0.05), SIDS, GateLimits())
    assert report.refusals == ()
    assert "calibration" not in report.metrics


def test_what_a_few_users_respond_to_again_and_again_refuses_nothing(model):
    online = learner(model)
    online.learn(lists(256, 0))
    held_out = [replace(each, click_value_N=each.click_value_N * (1 + 9 * ~each.responded_N)) for each in lists(200, 7)]
    (refusal, *_) = check(online, model.eval(), held_out, SIDS, GateLimits()).refusals
    assert refusal.startswith("calibration: ")
    of_few = [replace(each, user_key=each.user_key % 19) for each in held_out]
    report = check(online, model.eval(), of_few, SIDS, GateLimits())
    assert report.refusals == ()
    assert report.metrics["held_out_responders"] == 19


def test_on_too_few_lists_the_gate_refuses(model):
    (refusal,) = check(learner(model), model.eval(), lists(9, 7), SIDS, GateLimits()).refusals
    assert refusal == "held_out_lists: 9, below 10: nothing can be told"


def test_drift_is_the_mean_distance_in_likelihood(model):
    online = learner(model)
    held_out = lists(10, 7)
    with torch.no_grad():
        online.policy.head_bias.add_(torch.randn_like(online.policy.head_bias) * 0.1)
    expected = []
    for each in held_out:
        batch = collate_lists([each], [each.click_value_N], model)
        with torch.no_grad():
            now, then = (
                m.sid_log_probs(m.encode_context(batch.inputs), batch.sids_BNT) for m in (online.policy, model.eval())
            )
        expected += (now - then).abs().flatten().tolist()
    assert check(online, model, held_out, SIDS, GateLimits()).metrics["drift"] == pytest.approx(
        np.mean(expected), rel=1e-5
    )
