"""The demand side: what users are interested in, day by day, and what they are like.

Everything that changes is drawn ahead for the days of the log and after it, so that the truth at any time is a plain
look-up. Shapes: U users, D days, K topics, M interests, P departments, Y styles, V conversion
types.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.scenarios import CONVERSION_TYPES, MarketConfig
from gr4ad_tools.simulate.vocabulary import DEPARTMENT_SIZE, STYLES, TOPICS, related_topics

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TOPIC_ZIPF = 0.6  # exponent of the popularity of topics among users
COLD_ACTIVITY = 0.03  # activity of a cold user against the mean
ACTIVITY_SHAPE = 1.2  # of the gamma law of activity: heavy-tailed
HOUR_PEAKS = (8.5, 13.0, 20.5)
HOUR_PEAK_SHARES = (0.2, 0.25, 0.55)
HOUR_SPREAD = 2.2


@dataclass(frozen=True)
class Users:
    """All users of a market.

    Attributes:
        user_ids: Public ids, in an order that tells nothing.
        interests_UDM: Topics of interest on each day.
        weights_UDM: Their weights, summing to 1.
        intent_UD: Topic that the sessions of a day are about.
        taste_UY: Unit vectors over the styles.
        ideal_price_UP: Ideal price rank in each department, 0 to 1.
        price_sensitivity_U: Conversion log-odds lost per standard deviation of the price.
        propensity_UV: Conversion log-odds by conversion type.
        activity_U: Sessions per day.
        hour_U: Favourite hour.
        cold_U: Whether the user has almost no history.
    """

    user_ids: list[str]
    interests_UDM: NDArray[np.int16]
    weights_UDM: NDArray[np.float32]
    intent_UD: NDArray[np.int16]
    taste_UY: NDArray[np.float32]
    ideal_price_UP: FloatArray
    price_sensitivity_U: FloatArray
    propensity_UV: FloatArray
    activity_U: FloatArray
    hour_U: FloatArray
    cold_U: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user_ids)

    def interest_matrix(self, users_R: IntArray, days_R: IntArray) -> NDArray[np.float32]:
        """Return interests as dense rows over the topics, [R, K]."""
        rows = np.zeros((len(users_R), len(TOPICS)), dtype=np.float32)
        topics_RM = self.interests_UDM[users_R, days_R]
        rows[np.arange(len(users_R))[:, None], topics_RM] = self.weights_UDM[users_R, days_R]
        return rows


def make_users(config: MarketConfig, rng: np.random.Generator) -> Users:
    """Draw all users of a market."""
    n = config.users
    interests_UDM, weights_UDM = _interests(config, rng)
    cold_U = rng.random(n) < config.cold_users
    activity_U = rng.gamma(ACTIVITY_SHAPE, 1.0 / ACTIVITY_SHAPE, n)
    activity_U = np.where(cold_U, COLD_ACTIVITY, activity_U)
    taste_UY = rng.gamma(0.4, 1.0, (n, len(STYLES)))
    taste_UY /= np.linalg.norm(taste_UY, axis=1, keepdims=True)
    return Users(
        user_ids=[f"user-{number:06d}" for number in rng.permutation(n)],
        interests_UDM=interests_UDM,
        weights_UDM=weights_UDM,
        intent_UD=_intents(config, interests_UDM, weights_UDM, rng),
        taste_UY=taste_UY.astype(np.float32),
        ideal_price_UP=rng.random((n, len(TOPICS) // DEPARTMENT_SIZE)),
        price_sensitivity_U=rng.gamma(2.0, 0.25, n),
        propensity_UV=rng.normal(0.0, 0.6, (n, len(CONVERSION_TYPES))),
        activity_U=activity_U / activity_U.mean() * config.sessions_per_day,
        hour_U=np.mod(rng.choice(HOUR_PEAKS, size=n, p=HOUR_PEAK_SHARES) + rng.normal(0.0, HOUR_SPREAD / 2, n), 24.0),
        cold_U=cold_U,
    )


def _interests(config: MarketConfig, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Draw interests day by day: log weights wander, now and then an interest makes room for another topic."""
    n, days, m = config.users, config.days + config.online_days, config.interests
    popularity_K = rng.permutation(np.arange(1, len(TOPICS) + 1) ** -TOPIC_ZIPF)
    topics_UM = _distinct_topics(n, m, popularity_K, rng)
    logs_UM = rng.normal(0.0, 1.0, (n, m))
    interests_UDM = np.empty((n, days, m), dtype=np.int16)
    weights_UDM = np.empty((n, days, m), dtype=np.float32)
    for day in range(days):
        if day:
            # Towards the mean as well as away from it: the spread of the weights stays what it was.
            logs_UM = logs_UM * np.sqrt(1.0 - config.drift**2) + config.drift * rng.normal(size=(n, m))
            _jump(topics_UM, rng.random(n) < config.jump_rate, popularity_K, rng)
        if day == config.days and config.shift_jump_share:
            moved_U = rng.random(n) < config.shift_jump_share
            topics_UM[moved_U] = _distinct_topics(int(moved_U.sum()), m, popularity_K, rng)
        weights = np.exp(logs_UM)
        interests_UDM[:, day] = topics_UM
        weights_UDM[:, day] = weights / weights.sum(axis=1, keepdims=True)
    return interests_UDM, weights_UDM


def _distinct_topics(n: int, m: int, popularity_K: FloatArray, rng: np.random.Generator) -> IntArray:
    scores = np.log(popularity_K) + rng.gumbel(size=(n, len(popularity_K)))
    return np.asarray(np.argsort(-scores, axis=1)[:, :m])


def _jump(topics_UM: IntArray, jumps_U: NDArray[np.bool_], popularity_K: FloatArray, rng: np.random.Generator) -> None:
    users = np.flatnonzero(jumps_U)
    scores = np.log(popularity_K) + rng.gumbel(size=(len(users), len(popularity_K)))
    np.put_along_axis(scores, topics_UM[users], -np.inf, axis=1)  # not a topic the user already has
    topics_UM[users, rng.integers(0, topics_UM.shape[1], len(users))] = scores.argmax(axis=1)


def _intents(
    config: MarketConfig,
    interests_UDM: NDArray[np.int16],
    weights_UDM: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """Draw the intent of each day: it stays, moves to a related topic, or is taken from the interests."""
    n, days, _ = interests_UDM.shape
    related = np.array([related_topics(topic) for topic in range(len(TOPICS))])
    intent_UD = np.empty((n, days), dtype=np.int16)
    for day in range(days):
        cumulative = weights_UDM[:, day].cumsum(axis=1)
        choice = (rng.random((n, 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
        drawn = interests_UDM[np.arange(n), day, np.minimum(choice, interests_UDM.shape[2] - 1)]
        if day == 0:
            intent_UD[:, 0] = drawn
            continue
        before = intent_UD[:, day - 1]
        moved = related[before, rng.integers(0, related.shape[1], n)]
        lot = rng.random(n)
        stay, move = config.intent_stay, config.intent_stay + config.intent_related
        intent_UD[:, day] = np.where(lot < stay, before, np.where(lot < move, moved, drawn))
    return intent_UD
