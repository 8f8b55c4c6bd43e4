import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gr4ad_core.model.context import N_GAP_BUCKETS, collate_contexts, gap_buckets
from gr4ad_core.model.context_processor import hash_sids
from gr4ad_core.model.history import UserHistory
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.naive_context import naive_events, naive_feature_ids, naive_sid_hash
from tests.oracles.plain_decoder_cases import THREE_LEVELS, random_history, random_model

NO_EVENTS = UserHistory(np.zeros((0, 3), np.int64), np.zeros(0, np.int64), np.zeros(0))


@given(st.lists(st.integers(0, 10), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_collates_what_the_loop_reads(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    histories = [random_history(THREE_LEVELS, n, rng) for n in lengths]

    inputs = collate_contexts(histories, THREE_LEVELS)

    assert inputs.batch_size == len(histories)
    assert inputs.mask_BS.shape[1] == min(max(lengths), THREE_LEVELS.max_history)
    for row, history in enumerate(histories):
        events = naive_events(history, THREE_LEVELS)
        kept = inputs.mask_BS[row]
        assert kept.tolist() == [i < len(events) for i in range(len(kept))]
        assert [event.recency for event in events] == list(range(len(events)))
        assert inputs.sids_BST[row, kept].tolist() == [list(event.codes) for event in events]
        assert inputs.behaviors_BS[row, kept].tolist() == [event.behavior for event in events]
        assert inputs.gap_BS[row, kept].tolist() == [event.gap_bucket for event in events]
        ids = inputs.feature_ids_BF[row, inputs.feature_mask_BF[row]].tolist()
        assert ids == naive_feature_ids(history, THREE_LEVELS)
        assert not inputs.behaviors_BS[row, ~kept].any()
        assert not inputs.sids_BST[row, ~kept].any()


@given(st.floats(0, 3e9) | st.just(math.nan), st.floats(0, 3e9) | st.just(math.nan))
def test_gap_buckets_are_binary_logarithms(request_time: float, event_time: float) -> None:
    (bucket,) = gap_buckets(np.array([request_time]), np.array([event_time])).tolist()
    assert 0 <= bucket < N_GAP_BUCKETS
    if math.isnan(request_time) or math.isnan(event_time):
        assert bucket == 0
    else:
        gap = max(request_time - event_time, 0.0)
        assert 2 ** (bucket - 1) <= 1 + gap
        assert bucket == N_GAP_BUCKETS - 1 or 1 + gap < 2**bucket


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.integers(1, 1000))
def test_sid_hash_is_the_same_in_python_integers(codes: list[int], n_buckets: int) -> None:
    assert hash_sids(torch.tensor(codes), n_buckets).item() == naive_sid_hash(tuple(codes), n_buckets)


def test_sid_hash_spreads_neighbours() -> None:
    sids = torch.cartesian_prod(torch.arange(16), torch.arange(16), torch.arange(16))
    counts = torch.bincount(hash_sids(sids, 256), minlength=256)
    assert int(counts.min()) >= 1
    assert int(counts.max()) <= 48  # 16 a bucket on average


def test_a_request_does_not_depend_on_the_batch_around_it() -> None:
    rng = np.random.default_rng(0)
    model = random_model(THREE_LEVELS)
    histories = [random_history(THREE_LEVELS, n, rng) for n in (2, 0, 9, 5)]
    sids = torch.zeros(4, 3, dtype=torch.int64)
    together = model.teacher_forced(collate_contexts(histories, THREE_LEVELS), sids)
    for row, history in enumerate(histories):
        alone = model.teacher_forced(collate_contexts([history], THREE_LEVELS), sids[:1])
        torch.testing.assert_close(alone.ecpm_logits[0], together.ecpm_logits[row], atol=1e-5, rtol=1e-5)


def test_what_was_seen_before_the_latest_events_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    history = random_history(THREE_LEVELS, 9, rng)
    start = 9 - THREE_LEVELS.max_history
    latest = replace(
        history,
        sids=history.sids[start:],
        behaviors=history.behaviors[start:],
        event_times=history.event_times[start:],
    )
    whole, cut = (collate_contexts([h], THREE_LEVELS) for h in (history, latest))
    assert torch.equal(whole.sids_BST, cut.sids_BST)
    assert torch.equal(whole.gap_BS, cut.gap_BS)


def test_each_thing_known_of_an_event_counts() -> None:
    rng = np.random.default_rng(2)
    model = random_model(THREE_LEVELS)
    history = replace(random_history(THREE_LEVELS, 4, rng), event_times=np.array([1e9, 1.001e9, 1.002e9, 1.009e9]))
    sids = torch.zeros(1, 3, dtype=torch.int64)

    def logits(changed: UserHistory) -> torch.Tensor:
        return model.teacher_forced(collate_contexts([changed], THREE_LEVELS), sids).ecpm_logits

    other_sids = history.sids.copy()
    other_sids[1, 2] = (other_sids[1, 2] + 1) % 6
    variants = [
        replace(history, sids=other_sids),
        replace(history, behaviors=history.behaviors % 3 + 1),
        replace(history, request_time=2e9),
        replace(history, sids=history.sids[::-1], behaviors=history.behaviors[::-1]),
        replace(history, features={"hour": "17"}),
    ]
    for variant in variants:
        assert not torch.allclose(logits(history), logits(variant), atol=1e-4)


def test_empty_histories_and_an_empty_batch_are_defined() -> None:
    model = random_model(THREE_LEVELS)
    inputs = collate_contexts([NO_EVENTS, NO_EVENTS], THREE_LEVELS)
    assert inputs.mask_BS.shape == (2, 0)
    outputs = model.teacher_forced(inputs, torch.zeros(2, 3, dtype=torch.int64))
    assert torch.isfinite(outputs.ecpm_logits).all()
    assert collate_contexts([], THREE_LEVELS).batch_size == 0


def test_features_can_be_left_out() -> None:
    config = replace(THREE_LEVELS, n_feature_buckets=0)
    inputs = collate_contexts([replace(NO_EVENTS, features={"hour": "17"})], config)
    assert inputs.feature_ids_BF.shape == (1, 0)
    outputs = random_model(config).teacher_forced(inputs, torch.zeros(1, 3, dtype=torch.int64))
    assert torch.isfinite(outputs.ecpm_logits).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sids": np.array([[0, 0, 6], [0, 0, 0]])}, r"histories\.sids: .*give codes below \(7, 5, 6\)"),
        ({"sids": np.array([[0, -1, 0], [0, 0, 0]])}, r"histories\.sids"),
        ({"sids": np.zeros((2, 2), np.int64)}, r"histories\[0\]: sids \(2, 2\).*of 3 levels"),
        ({"behaviors": np.array([0, 1])}, r"histories\.behaviors: 0 to 1: give 1 \(impression\) to 3"),
        ({"behaviors": np.array([1, 4])}, r"histories\.behaviors: 1 to 4"),
        ({"event_times": np.zeros(3)}, r"histories\[0\].*event_times \(3,\)"),
    ],
)
def test_refuses_histories_that_make_no_sense(changed: dict[str, np.ndarray], message: str) -> None:
    history = UserHistory(np.zeros((2, 3), np.int64), np.array([1, 2]), np.zeros(2))
    with pytest.raises(ValueError, match=message):
        collate_contexts([replace(history, **changed)], THREE_LEVELS)
