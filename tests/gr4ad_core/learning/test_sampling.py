"""Training samples against their loop-form oracle; batches, splits, and what must be refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gr4ad_core.learning.data_folder import Interactions, hold_out
from gr4ad_core.learning.sampling import AdTable, TrainingSet
from gr4ad_core.learning.value_label import PRIOR_EVENTS, PRIOR_RATES
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.history import UserHistory
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import sampling_loop
from tests.oracles.sampling_loop import Event

VOCABULARY = ["a", "b", "c", "gone"]
ADS = AdTable(
    ad_ids=["c", "a", "b"],
    sids=np.array([[0, 1, 0], [1, 0, 1], [2, 1, 1]], np.int64),
    bid_micros=np.array([5_000, 70_000, 900_000], np.int64),
    conversion_types=["click", "purchase", "click"],
)
CONFIG = LazyArConfig(level_sizes=(3, 2, 2), d_model=8, n_heads=2, n_layers=2, n_lazy=1, d_ff=8, max_history=4)

events = st.builds(
    Event, st.sampled_from(VOCABULARY), st.integers(1, 3), st.one_of(st.just(math.nan), st.floats(0, 2e9))
)
sequences = st.lists(st.lists(events, max_size=8), max_size=6)


def interactions_of(users: list[list[Event]]) -> Interactions:
    flat = [event for user in users for event in user]
    return Interactions(
        user_ids=[str(u) for u in range(len(users))],
        offsets=np.append(0, np.cumsum([len(user) for user in users])).astype(np.int64),
        item_ids=VOCABULARY,
        items=np.array([VOCABULARY.index(event.item_id) for event in flat], np.int64),
        behaviors=np.array([event.behavior for event in flat], np.int64),
        timestamps=np.array([event.time for event in flat], np.float64),
    )


@given(users=sequences)
@settings(max_examples=150, deadline=None)
def test_samples_equal_their_loop_form(users):
    expected = sampling_loop.samples(users, set(ADS.ad_ids))
    if not expected:
        with pytest.raises(ValueError, match=r"interactions: .*give users with two or more events"):
            TrainingSet.from_interactions(interactions_of(users), ADS)
        return
    made = TrainingSet.from_interactions(interactions_of(users), ADS)
    sid = dict(zip(ADS.ad_ids, ADS.sids.tolist(), strict=True))
    bids = dict(zip(ADS.ad_ids, ADS.bid_micros.tolist(), strict=True))
    kinds = dict(zip(ADS.ad_ids, ADS.conversion_types, strict=True))
    assert len(made) == len(expected)
    assert made.skipped_events == sum(event.item_id == "gone" for user in users for event in user)
    for row, sample in enumerate(expected):
        span = slice(made.context_start_M[row], made.context_end_M[row])
        assert made.users_M[row] == sample.user
        assert made.event_sids_NT[span].tolist() == [sid[event.item_id] for event in sample.history]
        assert made.event_behaviors_N[span].tolist() == [event.behavior for event in sample.history]
        np.testing.assert_array_equal(made.event_times_N[span], [event.time for event in sample.history])
        np.testing.assert_equal(made.request_times_M[row], sample.target.time)
        assert made.target_sids_MT[row].tolist() == sid[sample.target.item_id]
        assert made.behaviors_M[row] == sample.target.behavior
        assert made.value_micros_M[row] == pytest.approx(
            sampling_loop.value_micros(users, sample.target, bids, kinds, PRIOR_EVENTS, PRIOR_RATES)
        )


def test_batch_keeps_the_latest_events_and_marks_unknown_times():
    times = [math.nan, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
    users = [[Event("abc"[i % 3], 1 + i % 3, time) for i, time in enumerate(times)]]
    made = TrainingSet.from_interactions(interactions_of(users), ADS)
    batch = made.batch(np.array([5, 0]), CONFIG)
    assert batch.inputs.mask_BS.sum(1).tolist() == [4, 1]
    assert batch.inputs.behaviors_BS[0].tolist() == [3, 2, 1, 3]  # the four latest of six, latest first
    assert batch.inputs.gap_BS[0].tolist() == sorted(batch.inputs.gap_BS[0].tolist())
    assert batch.inputs.gap_BS[0, 0] > 0
    assert batch.inputs.gap_BS[1, 0] == 0
    assert batch.sids_BT.tolist() == made.target_sids_MT[[5, 0]].tolist()


def test_sample_shown_as_a_new_user_has_no_history(training_set):
    config = replace(CONFIG, level_sizes=(6, 5, 4))
    batch = training_set.batch(np.arange(3), config, np.array([False, True, False]))
    assert batch.inputs.mask_BS.any(1).tolist() == [True, False, True]


@given(size=st.integers(1, 70), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_epoch_yields_every_sample_once(size, seed):
    made = TrainingSet.from_interactions(interactions_of([[Event("a", 3, 1.0)] * n for n in (2, 5, 9, 30, 3)]), ADS)
    batches = list(made.epoch(size, np.random.default_rng(seed)))
    assert max(map(len, batches)) <= size
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(made)))


def test_batches_hold_histories_of_like_length():
    made = TrainingSet.from_interactions(interactions_of([[Event("a", 3, 1.0)] * 41] * 20), ADS)
    lengths = made.context_end_M - made.context_start_M
    spread = [int(np.ptp(lengths[batch])) for batch in made.epoch(40, np.random.default_rng(0))]
    assert max(spread) <= 4  # 800 samples of 40 lengths in 20 batches: unsorted ones would span nearly all 40


def test_order_depends_on_the_seed_only(training_set):
    first, again, other = (
        np.concatenate(list(training_set.epoch(16, np.random.default_rng(seed)))).tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_validation_events_are_the_last_responses_and_in_no_history(training_set):
    training, held_out = training_set.split_validation(40, np.random.default_rng(0))
    assert len(held_out) == 40
    for row in range(40):
        user, end = held_out.users_M[row], held_out.context_end_M[row]
        # The held-out event lies at `end` of the shared columns: no history reaches it, none has it as its target.
        assert (training.context_end_M[training.users_M == user] < end).all()
        of_user = training_set.users_M == user
        later = training_set.behaviors_M[of_user & (training_set.context_end_M > end)]
        assert (later == 1).all()
        if held_out.behaviors_M[row] == 1:
            assert (training_set.behaviors_M[of_user] == 1).all()
    others = ~np.isin(training_set.users_M, held_out.users_M)
    assert np.isin(training_set.context_end_M[others], training.context_end_M).all()


def test_validation_takes_at_most_a_tenth(training_set):
    _, held_out = training_set.split_validation(10_000, np.random.default_rng(0))
    assert len(held_out) <= len(training_set) // 10


def test_held_out_events_of_the_folder_never_appear():
    users = [[Event("a", 3, 1.0), Event("b", 3, 2.0), Event("a", 3, 3.0), Event("c", 3, 4.0)]] * 3
    made = TrainingSet.from_interactions(hold_out(interactions_of(users), 1), ADS)
    seen = np.concatenate([made.event_sids_NT, made.target_sids_MT])
    assert not (seen == ADS.sids[0]).all(1).any()  # ad "c"


def test_rewarded_lists_become_samples_in_time_order():
    def history(n: int, time: float) -> UserHistory:
        return UserHistory(
            sids=np.tile(ADS.sids[:1], (n, 1)),
            behaviors=np.full(n, 2),
            event_times=np.full(n, time - 10),
            request_time=time,
            features={"hour": str(time)},
        )

    made = TrainingSet.from_lists(
        histories=[history(3, 200.0), history(0, 50.0), history(2, 100.0)],
        users=[7, 9, 7],
        list_M=np.array([0, 0, 1, 2]),
        target_sids_MT=ADS.sids[[0, 1, 2, 1]],
        behaviors_M=np.array([1, 3, 1, 2]),
        value_micros_M=np.array([1.0, 2.0, 3.0, 4.0]),
        ad_sids_AT=ADS.sids,
    )
    assert made.users_M.tolist() == [7, 7, 7, 9]
    assert made.value_micros_M.tolist() == [4.0, 1.0, 2.0, 3.0]
    assert (made.context_end_M - made.context_start_M).tolist() == [2, 3, 3, 0]
    batch = made.batch(np.arange(4), CONFIG)
    assert batch.inputs.mask_BS.sum(1).tolist() == [2, 3, 3, 0]
    assert batch.inputs.feature_mask_BF.all()
    assert len(torch.unique(batch.inputs.feature_ids_BF[:3])) == 2


def test_ad_table_refuses_a_duplicate_id_and_columns_that_differ():
    with pytest.raises(ValueError, match=r"ads\.ad_ids: x occurs twice"):
        AdTable(["x", "x"], np.zeros((2, 3), np.int64), np.ones(2, np.int64), ["click", "click"])
    with pytest.raises(ValueError, match=r"ads: 2 ids.*1 bids.*give one of each"):
        AdTable(["x", "y"], np.zeros((2, 3), np.int64), np.ones(1, np.int64), ["click", "click"])


def test_lists_without_impressions_are_refused():
    nothing = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match=r"lists: no shown ad.*give lists"):
        TrainingSet.from_lists([], [], nothing, np.zeros((0, 3), np.int64), nothing, np.zeros(0), ADS.sids)
