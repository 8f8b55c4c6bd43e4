"""What users do with the ads they are shown: the truth that no policy sees. README.md has the formulas.

Shapes: R requests, L ads of a request (its slots), K topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from gr4ad_tools.simulate.ads import Ads
from gr4ad_tools.simulate.fatigue import Fatigue
from gr4ad_tools.simulate.scenarios import CONVERSION_TYPES, DAY_S, MarketConfig
from gr4ad_tools.simulate.traffic import day_of, hour_of
from gr4ad_tools.simulate.users import Users
from gr4ad_tools.simulate.vocabulary import DEPARTMENT_SIZE

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

FAVOURED_HOUR = (21.0, 20.0, 14.0, 10.0, 23.0, 12.0)  # of the ad types
CONVERSION_TOPIC_EFFECT = 1.0
CONVERSION_QUALITY_EFFECT = 0.25
# Delay from click to conversion: Weibull scale in seconds and shape, of CONVERSION_TYPES; clicks charge at once.
DELAY_SCALE_S = (1.0, 1_200.0, 129_600.0, 14_400.0, 300.0)
DELAY_SHAPE = (1.0, 0.6, 0.6, 0.7, 0.8)
SHORTEST_DELAY_S = 60.0
LONGEST_DELAY_S = 28 * DAY_S


@dataclass(frozen=True)
class Probabilities:
    """True probabilities of a list, [R, L] each.

    Attributes:
        examined_RL: The slot is looked at.
        click_RL: Click, given that it is.
        conversion_RL: Conversion, given a click; 0 for campaigns that pay for clicks.
        reported_RL: The account reports a conversion.
    """

    examined_RL: Float32Array
    click_RL: Float32Array
    conversion_RL: Float32Array
    reported_RL: Float32Array


@dataclass(frozen=True)
class Outcomes:
    """What happened, [R, L] each.

    Attributes:
        clicked_RL: Clicks.
        converted_RL: Conversions, reported or not.
        reported_RL: Conversions that are reported, the only ones anybody learns of.
        delay_s_RL: Time from click to conversion; 0 where there is none.
    """

    clicked_RL: NDArray[np.bool_]
    converted_RL: NDArray[np.bool_]
    reported_RL: NDArray[np.bool_]
    delay_s_RL: FloatArray


class Behaviour:
    """The truth about clicks and conversions; `calibrate` it once before use."""

    def __init__(self, config: MarketConfig, ads: Ads, users: Users, fatigue: Fatigue) -> None:
        self._config, self._ads, self._users, self._fatigue = config, ads, users, fatigue
        creatives, creative_N = ads.creatives, ads.creative_N
        self._topics_N2 = creatives.topics_C2[creative_N]
        self._topic_weights_N2 = creatives.topic_weights_C2[creative_N]
        self._department_N = self._topics_N2[:, 0] // DEPARTMENT_SIZE
        self._style_NY = creatives.style_CY[creative_N]
        self._price_rank_N = creatives.price_rank_C[creative_N].astype(np.float32)
        self._quality_N = creatives.quality_C[creative_N].astype(np.float32)
        price_N = np.log(np.maximum(creatives.price_C, 0.01))[creative_N]
        self._price_z_N = ((price_N - price_N.mean()) / price_N.std()).astype(np.float32)
        self._reported_N = ads.reported_A[ads.account_N].astype(np.float32)
        self._account_effect_N = ads.conversion_effect_A[ads.account_N].astype(np.float32)
        self._favoured_N = np.asarray(FAVOURED_HOUR, dtype=np.float32)[ads.ad_type_N]
        self._pays_conversion_N = ads.conversion_type_N != CONVERSION_TYPES.index("click")
        self._click_intercept = 0.0
        self._conversion_intercept_V = np.zeros(len(CONVERSION_TYPES), dtype=np.float32)

    def examination(self, slots: IntArray) -> Float32Array:
        """Return the probability that slots, from 0, are looked at: (1 + slot)^−decay."""
        return np.asarray(np.power(1.0 + slots, -self._config.examination_decay), dtype=np.float32)

    def price_appeal(self, users_R: IntArray, ads_RL: IntArray) -> Float32Array:
        """Return how near prices are to the users' ideals, [R, L], 0 to 1.

        The ideal differs by department and is narrow: as a matrix over users and ads, this has a rank far beyond the
        dimension of a two-tower model, so that no dot product fits it.
        """
        ideal_RL = self._users.ideal_price_UP[users_R[:, None], self._department_N[ads_RL]].astype(np.float32)
        distance_RL = (self._price_rank_N[ads_RL] - ideal_RL) / np.float32(self._config.price_width)
        return np.asarray(np.exp(-0.5 * np.square(distance_RL)))

    def probabilities(
        self, users_R: IntArray, ads_RL: IntArray, times_R: FloatArray, slots_L: IntArray
    ) -> Probabilities:
        """Return the true probabilities of lists; an ad of −1 is an empty slot and has none.

        Args:
            users_R: User of each request.
            ads_RL: Ads in the order shown.
            times_R: Unix time of each request.
            slots_L: Slot of each column, from 0.
        """
        click_RL, conversion_RL = self._log_odds(users_R, ads_RL, times_R)
        click_RL += self._click_intercept
        conversion_RL += self._conversion_intercept_V[self._ads.conversion_type_N[ads_RL]]
        shown_RL = ads_RL >= 0
        return Probabilities(
            examined_RL=self.examination(slots_L)[None, :] * shown_RL,
            click_RL=expit(click_RL) * shown_RL,
            conversion_RL=expit(conversion_RL) * (self._pays_conversion_N[ads_RL] & shown_RL),
            reported_RL=self._reported_N[ads_RL],
        )

    def respond(self, users_R: IntArray, ads_RL: IntArray, times_R: FloatArray, rng: np.random.Generator) -> Outcomes:
        """Draw what users do with lists, and remember what they have seen."""
        truth = self.probabilities(users_R, ads_RL, times_R, np.arange(ads_RL.shape[1]))
        shape = ads_RL.shape
        clicked_RL = rng.random(shape, dtype=np.float32) < truth.examined_RL * truth.click_RL
        converted_RL = clicked_RL & (rng.random(shape, dtype=np.float32) < truth.conversion_RL)
        reported_RL = converted_RL & (rng.random(shape, dtype=np.float32) < truth.reported_RL)
        delay_s_RL = np.zeros(shape)
        types = self._ads.conversion_type_N[ads_RL[converted_RL]]
        delay_s_RL[converted_RL] = _delays(types, rng)
        weights_RL = (ads_RL >= 0).astype(np.float32)
        weights_RL += self._config.click_exposures * clicked_RL + self._config.conversion_exposures * converted_RL
        self._fatigue.expose(users_R, ads_RL, weights_RL, times_R)
        return Outcomes(clicked_RL, converted_RL, reported_RL, delay_s_RL)

    def calibrate(self, users_R: IntArray, ads_RL: IntArray, times_R: FloatArray) -> None:
        """Set the intercepts such that these lists have the configured base rates in expectation."""
        click_RL, conversion_RL = self._log_odds(users_R, ads_RL, times_R)
        examined_RL = np.broadcast_to(self.examination(np.arange(ads_RL.shape[1])), ads_RL.shape)
        shown_RL = (ads_RL >= 0).astype(np.float64)
        self._click_intercept = _intercept(click_RL, examined_RL * shown_RL, shown_RL, self._config.ctr)
        clicks_RL = expit(click_RL + self._click_intercept) * examined_RL * shown_RL
        types_RL = self._ads.conversion_type_N[ads_RL]
        for name, rate in self._config.cvr:
            number = CONVERSION_TYPES.index(name)
            weights = clicks_RL * (types_RL == number)
            self._conversion_intercept_V[number] = _intercept(conversion_RL, weights, weights, rate)

    def _log_odds(self, users_R: IntArray, ads_RL: IntArray, times_R: FloatArray) -> tuple[Float32Array, Float32Array]:
        """Return the log-odds of click and of conversion, without intercepts."""
        config, users = self._config, self._users
        days_R = np.clip(day_of(times_R), 0, users.intent_UD.shape[1] - 1)
        wants_RK = users.interest_matrix(users_R, days_R) * np.float32(1.0 - config.intent_share)
        wants_RK[np.arange(len(users_R)), users.intent_UD[users_R, days_R]] += np.float32(config.intent_share)
        rows_R1 = np.arange(len(users_R))[:, None]
        match_RL = wants_RK[rows_R1, self._topics_N2[ads_RL, 0]] * self._topic_weights_N2[ads_RL, 0]
        match_RL += wants_RK[rows_R1, self._topics_N2[ads_RL, 1]] * self._topic_weights_N2[ads_RL, 1]
        style_RL = np.einsum("rly,ry->rl", self._style_NY[ads_RL], users.taste_UY[users_R])
        price_RL = self.price_appeal(users_R, ads_RL)
        hour_R1 = hour_of(times_R).astype(np.float32)[:, None]
        hour_RL = np.cos((hour_R1 - self._favoured_N[ads_RL]) * np.float32(2.0 * np.pi / 24.0))
        quality_RL = self._quality_N[ads_RL]
        click_RL = (
            np.float32(config.topic_effect) * match_RL
            + np.float32(config.style_effect) * style_RL
            + np.float32(config.price_effect) * price_RL
            + np.float32(config.quality_effect) * quality_RL
            + np.float32(config.evening_effect) * hour_RL
            + self._fatigue.log_odds(users_R, ads_RL, times_R)
        )
        types_RL = self._ads.conversion_type_N[ads_RL]
        purchase_RL = types_RL == CONVERSION_TYPES.index("purchase")
        sensitivity_R1 = users.price_sensitivity_U[users_R].astype(np.float32)[:, None]
        conversion_RL = (
            users.propensity_UV[users_R[:, None], types_RL].astype(np.float32)
            + self._account_effect_N[ads_RL]
            + np.float32(CONVERSION_TOPIC_EFFECT) * match_RL
            + np.float32(CONVERSION_QUALITY_EFFECT) * quality_RL
            - sensitivity_R1 * self._price_z_N[ads_RL] * purchase_RL
        )
        return click_RL, conversion_RL


def _delays(types: IntArray, rng: np.random.Generator) -> FloatArray:
    """Draw delays by type from Weibull laws cut off at 28 days."""
    scale, shape = np.asarray(DELAY_SCALE_S)[types], np.asarray(DELAY_SHAPE)[types]
    within = -np.expm1(-np.power(LONGEST_DELAY_S / scale, shape))  # probability of a delay below the cut-off
    drawn = scale * np.power(-np.log1p(-rng.random(len(types)) * within), 1.0 / shape)
    return np.asarray(np.clip(drawn, SHORTEST_DELAY_S, LONGEST_DELAY_S))


def _intercept(log_odds: Float32Array, weights: FloatArray, base: FloatArray, rate: float) -> float:
    """Return b with Σ weights · σ(b + log_odds) = rate · Σ base, by bisection; logit(rate) where nothing has weight."""
    total = float(base.sum())
    if total <= 0.0:
        return float(logit(rate))
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if float((weights * expit(log_odds.astype(np.float64) + middle)).sum()) < rate * total:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
