"""Behaviour and money of the simulated market, held to their formulas."""

import math

import numpy as np
import pytest
from gr4ad_tools.simulate import Market
from gr4ad_tools.simulate.behaviour import LONGEST_DELAY_S, SHORTEST_DELAY_S, Behaviour
from gr4ad_tools.simulate.fatigue import Fatigue
from gr4ad_tools.simulate.scenarios import AD_TYPES, CONVERSION_TYPES, DAY_S, tiny
from gr4ad_tools.simulate.traffic import START

from tests.gr4ad_tools.simulated_market import market
from tests.oracles.naive_market import click_log_odds, conversion_log_odds


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_probabilities_follow_the_formulas() -> None:
    made = Market("tiny", 3)
    config, ads, users, behaviour = made.config, made._ads, made._users, made._behaviour
    rng = np.random.default_rng(0)
    seen = {}
    for user in range(5):  # some exposures, two days before they are asked about
        shown = rng.integers(0, 240, (1, 4))
        made._fatigue.expose(np.array([user]), shown, np.full((1, 4), 3.0, np.float32), np.array([START + DAY_S]))
        seen[user] = shown[0]
    time = START + 3 * DAY_S + 17.5 * 3600
    users_R, ads_RL = np.arange(5), np.stack([np.append(seen[user], rng.integers(0, 240, 8)) for user in range(5)])

    truth = behaviour.probabilities(users_R, ads_RL, np.full(5, time), np.arange(12))

    prices = np.log(ads.creatives.price_C)[ads.creative_N]
    decay = math.exp(-(2 * DAY_S + 17.5 * 3600) / (config.fatigue_days * DAY_S))
    for user in range(5):
        for slot, ad in enumerate(ads_RL[user].tolist()):
            creative = 3.0 * decay * sum(ads.creative_N[other] == ads.creative_N[ad] for other in seen[user])
            account = 3.0 * decay * sum(ads.account_N[other] == ads.account_N[ad] for other in seen[user])
            ad_type = AD_TYPES[ads.ad_type_N[ad]]
            odds = click_log_odds(config, users, ads, user, ad, ad_type, 3, 17.5, (creative, account))
            assert truth.click_RL[user, slot] == pytest.approx(sigmoid(odds + behaviour._click_intercept), rel=1e-3)
            kind = int(ads.conversion_type_N[ad])
            price_z = (prices[ad] - prices.mean()) / prices.std()
            odds = conversion_log_odds(config, users, ads, user, ad, 3, price_z)
            expected = 0.0 if kind == 0 else sigmoid(odds + float(behaviour._conversion_intercept_V[kind]))
            assert truth.conversion_RL[user, slot] == pytest.approx(expected, rel=1e-3)
            assert truth.examined_RL[user, slot] == pytest.approx(1 / math.sqrt(1 + slot), rel=1e-5)


def test_true_ecpm_is_what_the_formula_says_and_what_is_charged_on_average() -> None:
    made = market()
    time = made.end + 12 * 3600
    rng = np.random.default_rng(1)
    users = rng.integers(0, 800, 50)
    best = np.argsort(-made.true_ecpm(users, np.broadcast_to(np.arange(1200), (50, 1200)), time), axis=1)[:, :5]

    ecpm = made.true_ecpm(users, best, time, np.arange(5))

    truth = made._behaviour.probabilities(users, best, np.full(50, time), np.arange(5))
    ads = made._ads
    for row, slot in np.ndindex(best.shape):
        ad = best[row, slot]
        bid = int(ads.bid_micros_N[ad])
        conversion = float(truth.conversion_RL[row, slot]) * float(ads.reported_A[ads.account_N[ad]])
        per_click = bid if CONVERSION_TYPES[ads.conversion_type_N[ad]] == "click" else conversion * bid
        seen_and_clicked = float(truth.examined_RL[row, slot]) * float(truth.click_RL[row, slot])
        assert ecpm[row, slot] == pytest.approx(1000 * seen_and_clicked * per_click, rel=1e-5)

    # Charged for real, on the law of large numbers: the same lists 400 times, before anybody tires.
    earned = []
    for _ in range(400):
        behaviour = Behaviour(made.config, ads, made._users, Fatigue(made.config, ads))
        behaviour._click_intercept = made._behaviour._click_intercept
        behaviour._conversion_intercept_V = made._behaviour._conversion_intercept_V
        outcomes = behaviour.respond(users, best, np.full(50, time), rng)
        paid = np.where(ads.conversion_type_N[best] == 0, outcomes.clicked_RL, outcomes.reported_RL)
        earned.append(float((paid * ads.bid_micros_N[best]).sum()))
    fresh = Behaviour(made.config, ads, made._users, Fatigue(made.config, ads))
    fresh._click_intercept = made._behaviour._click_intercept
    fresh._conversion_intercept_V = made._behaviour._conversion_intercept_V
    expected = made._money.ecpm(
        fresh.probabilities(users, best, np.full(50, time), np.arange(5)), best, np.full(50, time)
    )
    error = np.std(earned) / math.sqrt(len(earned))
    assert abs(np.mean(earned) - expected.sum() / 1000) < 4 * error


def test_an_empty_slot_is_worth_nothing_and_is_never_clicked() -> None:
    made = Market("tiny", 0)
    lists = np.array([[3, -1, 5], [-1, -1, -1]])

    assert made.true_ecpm(np.array([0, 1]), lists, made.end)[lists < 0].tolist() == [0.0] * 4
    for _ in range(200):
        response = made.respond_many(np.array([0, 1]), lists, np.full(2, made.end), np.random.default_rng(0))
        assert not response.clicked_RL[lists < 0].any()
    assert made._fatigue._by_creative[1].sum() == 0


def test_the_price_interaction_is_no_dot_product() -> None:
    made = market()
    appeal = made._behaviour.price_appeal(np.arange(800), np.broadcast_to(np.arange(1200), (800, 1200)))
    appeal = appeal - appeal.mean(axis=0) - appeal.mean(axis=1, keepdims=True) + appeal.mean()

    energy = np.linalg.svd(appeal, compute_uv=False) ** 2

    assert 1 - energy[:16].sum() / energy.sum() > 1 / 3


def test_users_tire_of_what_they_see_and_recover() -> None:
    made = Market("tiny", 0)
    user, ads = np.array([4]), np.array([[17, 18]])
    other = np.setdiff1d(np.arange(240), np.flatnonzero(np.isin(made._ads.account_N, made._ads.account_N[ads])))[:1]
    before, before_other = (made.true_ecpm(user, shown, made.start) for shown in (ads, other[None, :]))

    for _ in range(5):
        made.respond_many(user, ads, np.array([made.start]), np.random.default_rng(0))

    after = made.true_ecpm(user, ads, made.start)
    now, later = (made._fatigue.log_odds(user, ads, np.array([made.start + days * DAY_S])) for days in (0, 20))
    assert (after < before).all()
    assert (now < later).all()
    assert (later < 0).all()
    assert made.true_ecpm(user, other[None, :], made.start) == before_other
    assert (made.true_ecpm(np.array([5]), ads, made.start) > 0).all()


def test_a_user_in_several_rows_is_exposed_by_each() -> None:
    config = tiny()
    ads = Market("tiny", 0)._ads
    together, apart = Fatigue(config, ads), Fatigue(config, ads)
    lists, times = np.array([[1, 2], [2, 3], [1, 9]]), np.array([START, START + 60.0, START + 60.0])
    weights = np.ones((3, 2), np.float32)

    together.expose(np.array([7, 7, 8]), lists, weights, times)
    for row, user in enumerate((7, 7, 8)):
        apart.expose(np.array([user]), lists[row : row + 1], weights[row : row + 1], times[row : row + 1])

    def levels(fatigue: Fatigue) -> np.ndarray:
        return fatigue.log_odds(np.array([7, 8]), np.broadcast_to(np.arange(12), (2, 12)), np.full(2, START + 60.0))

    # In one call, a minute's decay of the earlier rows is not told: one in 8,640.
    np.testing.assert_allclose(levels(together), levels(apart), rtol=1e-3)
    assert (levels(together) < 0).any()


def test_delays_are_weibull_within_a_minute_and_28_days() -> None:
    from gr4ad_tools.simulate.behaviour import _delays

    rng = np.random.default_rng(0)
    purchase, follow = (_delays(np.full(20_000, CONVERSION_TYPES.index(name)), rng) for name in ("purchase", "follow"))

    for delays in (purchase, follow):
        assert SHORTEST_DELAY_S <= delays.min() <= delays.max() <= LONGEST_DELAY_S
    # Medians of the laws: scale · (ln 2)^(1/shape), the cut-off taking a little from the long one.
    assert np.median(follow) == pytest.approx(300 * math.log(2) ** (1 / 0.8), rel=0.05)
    assert np.median(purchase) == pytest.approx(129_600 * math.log(2) ** (1 / 0.6), rel=0.1)
    assert np.percentile(purchase, 99) > 7 * DAY_S
