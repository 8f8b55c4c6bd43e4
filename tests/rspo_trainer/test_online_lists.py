"""Rewarded lists as online learning takes them."""

from __future__ import annotations

import numpy as np
from gr4ad.reward.v1 import reward_pb2
from gr4ad_core.learning.sampling import AdTable
from gr4ad_core.learning.value_label import PRIOR_RATES, ChargeRates
from rspo_trainer.online_lists import HELD_OUT_OF, ListTranslator, is_held_out

from tests.oracles.reward_messages import served_list

ADS = AdTable(
    ad_ids=["past", "a", "b", "c"],
    sids=np.array([[1, 1, 0], [0, 0, 1], [0, 1, 2], [1, 0, 3]]),
    bid_micros=np.array([400, 100, 200, 300]),
    conversion_types=["purchase", "purchase", "click", "lead"],
)
RATES = ChargeRates({"purchase": (0.01, 0.1, 1.0), "click": (0.02, 1.0, 1.0)})


def rewarded(served: reward_pb2.ServedList, **outcomes: tuple[int, int, int]) -> reward_pb2.RewardedList:
    return reward_pb2.RewardedList(
        served_list=served,
        outcomes=[
            reward_pb2.Outcome(
                ad_id=ad, impression_count=1, click_count=clicks, conversion_count=bought, revenue_micros=paid
            )
            for ad, (clicks, bought, paid) in outcomes.items()
        ],
    )


def own_list(ads: tuple[str, ...] = ("c", "unknown", "a", "b")) -> reward_pb2.ServedList:
    served = served_list(1, ads)
    served.channel = "stable"
    return served


def test_a_list_comes_with_what_was_shown_and_what_it_was_worth() -> None:
    taken = ListTranslator(ADS, RATES).translate(rewarded(own_list(), b=(1, 0, 0), c=(0, 0, 0)))
    assert taken is not None
    assert taken.sids_NT.tolist() == [[1, 0, 3], [0, 0, 1], [0, 1, 2]]
    np.testing.assert_allclose(taken.log_ref_N, [-1.5, -3.5, -4.5])
    assert taken.has_ref
    assert taken.places_N.tolist() == [0, -1, 1]
    prior = PRIOR_RATES[2, 3]  # of a conversion type that the policy's log did not have
    np.testing.assert_allclose(taken.click_value_N, [1000 * 300 * prior, 1000 * 100 * 0.1, 1000 * 200])
    np.testing.assert_allclose(taken.response_value_N, [0.0, 0.0, 1000 * 200])
    assert taken.history.sids.tolist() == [[1, 1, 0]]
    assert len(set(taken.keys_N.tolist())) == 3


def test_a_response_is_worth_what_was_paid_or_its_expected_charge() -> None:
    translator = ListTranslator(ADS, RATES)

    def worth(**outcomes: tuple[int, int, int]) -> list[float]:
        taken = translator.translate(rewarded(own_list(("a", "b")), **outcomes))
        assert taken is not None
        return taken.response_value_N.tolist()

    assert worth(a=(1, 0, 0), b=(0, 0, 0)) == [1000 * 100 * 0.1, 0.0]
    assert worth(a=(1, 1, 0)) == [1000 * 100, 0.0]
    assert worth(a=(1, 1, 77)) == [77_000, 0.0]


def test_lists_that_teach_nothing_are_left_out() -> None:
    translator = ListTranslator(ADS, RATES)
    assert translator.translate(rewarded(own_list())) is None
    assert translator.translate(rewarded(own_list(("unknown",)), unknown=(1, 0, 0))) is None


def test_a_list_of_another_pipeline_has_no_reference() -> None:
    taken = ListTranslator(ADS, RATES).translate(rewarded(served_list(1), a=(1, 0, 0)))
    assert taken is not None
    assert not taken.has_ref
    assert not taken.log_ref_N.any()


def test_an_ad_keeps_its_key_in_another_catalogue() -> None:
    reversed_ads = AdTable(ADS.ad_ids[::-1], ADS.sids[::-1], ADS.bid_micros[::-1], ADS.conversion_types[::-1])
    first, second = (
        ListTranslator(ads, RATES).translate(rewarded(own_list(), a=(0, 0, 0))) for ads in (ADS, reversed_ads)
    )
    assert first is not None
    assert second is not None
    assert first.keys_N.tolist() == second.keys_N.tolist()


def test_a_list_tells_whose_it_is() -> None:
    def of(number: int, user: str) -> int:
        taken = ListTranslator(ADS, RATES).translate(rewarded(served_list(number, user_id=user), a=(0, 0, 0)))
        assert taken is not None
        return taken.user_key

    assert of(1, "one") == of(2, "one")
    assert len({of(1, "one"), of(1, "two"), of(1, ""), of(2, "")}) == 4  # without a user, each stands for itself


def test_a_tenth_of_the_users_is_held_out_for_good() -> None:
    def of(user: str, number: int = 1) -> bool:
        return is_held_out(served_list(number, user_id=user))

    held_out = sum(of(f"user-{n}") for n in range(5000))
    assert abs(held_out - 5000 / HELD_OUT_OF) < 100
    assert all(of(f"user-{n}", 1) == of(f"user-{n}", 2) for n in range(100))
    assert len({of("", number) for number in range(100)}) == 2
