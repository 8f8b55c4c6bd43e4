"""Samples from the reward log."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gr4ad.reward.v1 import reward_pb2
from gr4ad.training.v1 import training_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.sampling import AdTable, TrainingSet
from gr4ad_core.learning.value_label import ChargeRates
from gr4ad_runtime.errors import FailedPreconditionError
from rspo_trainer.log_source import LogSamples

from tests.oracles.reward_messages import feedback, impression, served_list
from tests.rspo_trainer.conftest import Trainer

ADS = AdTable(
    ad_ids=["a", "b", "c", "past"],
    sids=np.array([[0, 0, 1], [0, 1, 2], [1, 0, 3], [1, 1, 0]]),
    bid_micros=np.array([100, 200, 300, 400]),
    conversion_types=["purchase", "click", "purchase", "purchase"],
)


def rewarded(served: reward_pb2.ServedList, *outcomes: tuple[str, int, int, int, int]) -> reward_pb2.RewardedList:
    return reward_pb2.RewardedList(
        served_list=served,
        outcomes=[
            reward_pb2.Outcome(
                ad_id=ad, impression_count=shown, click_count=clicks, conversion_count=bought, revenue_micros=paid
            )
            for ad, shown, clicks, bought, paid in outcomes
        ],
    )


def collect(*lists: reward_pb2.RewardedList) -> TrainingSet:
    samples = LogSamples(ADS)
    for item in lists:
        samples.add(item)
    return samples.training_set()


def test_responses_are_targets_and_ads_only_shown_are_not() -> None:
    samples = collect(
        rewarded(served_list(1), ("a", 1, 1, 1, 0), ("b", 1, 1, 0, 0), ("c", 1, 0, 0, 0)),
        rewarded(served_list(2)),
        rewarded(served_list(3), ("c", 0, 1, 0, 0)),  # a click whose impression never came
    )
    assert samples.target_sids_MT.tolist() == [[0, 0, 1], [0, 1, 2], [1, 0, 3]]
    assert samples.behaviors_M.tolist() == [3, 2, 2]
    np.testing.assert_allclose(samples.request_times_M, [1001.0, 1001.0, 1003.0], atol=1e-6)
    assert [dict(features) for features in samples.features] == [{"hour": "17"}] * 3
    for sample, event_time in zip(range(3), (901.0, 901.0, 903.0), strict=True):
        events = slice(samples.context_start_M[sample], samples.context_end_M[sample])
        assert samples.event_sids_NT[events].tolist() == [[1, 1, 0]]
        assert samples.event_behaviors_N[events].tolist() == [2]
        assert samples.event_times_N[events].tolist() == [event_time]
    assert samples.skipped_events == 0
    assert samples.ad_sids_AT is ADS.sids


def test_the_value_is_what_was_paid_or_else_the_expected_charge() -> None:
    shown = [("a", 1, 0, 0, 0)] * 6
    samples = collect(
        rewarded(served_list(1), ("a", 1, 1, 0, 0), ("c", 1, 1, 1, 777), ("b", 1, 1, 0, 0)),
        *(rewarded(served_list(n + 2), outcome) for n, outcome in enumerate(shown)),
    )
    kinds = ["purchase"] * 8 + ["click"] + ["purchase"] * 2 + ["click"] + ["purchase"]
    behaviors = [1] * 9 + [2] * 3 + [3]
    rates = ChargeRates.measure(np.array(kinds), np.array(behaviors)).rates
    expected = {
        (0, 0, 1): 1000.0 * 100 * rates["purchase"][1],  # a click on an ad that pays for purchases
        (1, 0, 3): 1000.0 * 777,  # paid
        (0, 1, 2): 1000.0 * 200,  # a click that is charged, not paid for yet
    }
    found = dict(zip(map(tuple, samples.target_sids_MT.tolist()), samples.value_micros_M.tolist(), strict=True))
    assert found == pytest.approx(expected)


def test_unknown_ads_are_skipped_and_counted() -> None:
    served = served_list(1)
    served.user_context.history.add(ad_id="gone", behavior=type_pb2.BEHAVIOR_CLICK)
    samples = collect(rewarded(served, ("gone", 1, 1, 0, 0), ("a", 1, 1, 0, 0)))
    assert samples.skipped_events == 2
    assert samples.event_sids_NT.tolist() == [[1, 1, 0]]
    assert len(samples) == 1


def test_times_that_are_not_stated_stay_unknown_and_a_stated_request_time_goes_first() -> None:
    served = served_list(1)
    served.user_context.history[0].ClearField("event_time")
    served.user_context.request_time.seconds = 5
    samples = collect(rewarded(served, ("a", 0, 1, 0, 0)))
    assert math.isnan(samples.event_times_N[0])
    assert samples.request_times_M.tolist() == [5.0]


def test_an_empty_history_is_welcome() -> None:
    served = served_list(1)
    served.user_context.ClearField("history")
    samples = collect(rewarded(served, ("a", 0, 1, 0, 0)))
    assert samples.context_start_M.tolist() == samples.context_end_M.tolist()


def test_lists_of_one_user_belong_together_and_unnamed_users_do_not() -> None:
    clicked = ("a", 1, 1, 0, 0)
    users = ["ann", "", "bob", "ann", ""]
    samples = collect(*(rewarded(served_list(n, user_id=user), clicked) for n, user in enumerate(users)))
    by_list = samples.users_M[np.argsort(samples.request_times_M)]
    assert by_list[0] == by_list[3]
    assert len(set(by_list.tolist())) == 4


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="reward_log: 2 lists, none with a click or a conversion"):
        collect(rewarded(served_list(1), ("a", 1, 0, 0, 0)), rewarded(served_list(2), ("gone", 1, 1, 0, 0)))


async def test_a_run_learns_from_the_log_after_its_cursor(trainer: Trainer) -> None:
    lists = [served_list(n, ads=(f"ad-{n % 40}", f"ad-{(n + 1) % 40}"), user_id=f"user-{n % 10}") for n in range(60)]
    for n, served in enumerate(lists):
        served.user_context.history[0].ad_id = f"ad-{(n + 39) % 40}"
    await trainer.rewards.BatchCreateServedLists(reward_pb2.BatchCreateServedListsRequest(served_lists=lists))
    await trainer.rewards.BatchCreateImpressions(
        reward_pb2.BatchCreateImpressionsRequest(
            impressions=[impression(f"e{n}", n, f"ad-{n % 40}") for n in range(60)]
        )
    )
    await trainer.rewards.BatchCreateFeedback(
        reward_pb2.BatchCreateFeedbackRequest(
            feedback=[feedback(f"e{n}", n, f"ad-{n % 40}", revenue=5) for n in range(60)]
        )
    )
    run = await trainer.end_of(
        (await trainer.create(epochs=1, reward_log=training_pb2.RewardLogSource(cursor=20))).run_id
    )
    assert (run.error, run.state) == ("", training_pb2.TRAINING_RUN_STATE_SUCCEEDED)
    assert run.metrics["train_samples"] + run.metrics["held_out_samples"] == 40
