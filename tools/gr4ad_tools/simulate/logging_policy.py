"""The policy that was in charge while the log was made: biased, sensible, and not in the know.

It fills a list slot by slot without repeats. With probability ε a slot is filled uniformly from the live ads, else from
`q(a | u) ∝ popularity(a)^γ · value(a)^δ · exp(β · Â(u, a))`: popularity counts its own clicks, value is the bid at base
rates, and the affinity Â comes from interests that are stale, partly noise, and ignorant of intent, style and price.
Ads that the user has clicked on an earlier day are all but left out.
The propensity of a slot is exact: the mixture's share of the ad among the ads that could still be drawn.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.ads import Ads
from gr4ad_tools.simulate.scenarios import MarketConfig
from gr4ad_tools.simulate.users import Users
from gr4ad_tools.simulate.vocabulary import TOPICS

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

STALE_DAYS = 3  # the policy's beliefs are as of this many days ago
PRIOR_CLICKS = 2.0
PRIOR_SPREAD = 0.8
PRIOR_QUALITY = 0.4
SPARE_DRAWS = 10  # drawn beyond the list's length, to make up for repeats and paused ads
CAP = 0.02  # what is left of an ad's share for a user who has clicked it on an earlier day
USER_CHUNK = 256  # users whose cumulative shares are held at once


class LoggingPolicy:
    """Chooses lists; `prepare` it for each day."""

    def __init__(
        self, config: MarketConfig, ads: Ads, users: Users, value_N: FloatArray, rng: np.random.Generator
    ) -> None:
        self._config, self._users, self._rng = config, users, rng
        self._topics_NK = ads.creatives.topic_matrix()[ads.creative_N]
        self._value_log_N = np.log(np.maximum(value_N, 1.0))
        prior_log_N = PRIOR_SPREAD * rng.normal(size=len(ads)) + PRIOR_QUALITY * ads.creatives.quality_C[ads.creative_N]
        self._clicks_N = PRIOR_CLICKS * np.exp(prior_log_N)
        self._noise_UK = rng.dirichlet(np.full(len(TOPICS), 0.1), len(users)).astype(np.float32)
        self._clicked = np.zeros((0, 2), dtype=np.int64)  # user and ad
        self._live = np.arange(len(ads))
        self._column_N = np.arange(len(ads))
        self._shares_UN: Float32Array = np.zeros((0, 0), dtype=np.float32)

    def learn(self, users: IntArray, ads: IntArray) -> None:
        """Learn of clicks: they count towards popularity and the frequency cap from the next `prepare` on."""
        np.add.at(self._clicks_N, ads, 1.0)
        self._clicked = np.concatenate([self._clicked, np.stack([users, ads], axis=1)])

    def prepare(self, day: int, live_N: NDArray[np.bool_]) -> None:
        """Work out every user's shares q(a | u) over the ads that are live on a day."""
        config, users = self._config, self._users
        self._live = np.flatnonzero(live_N)
        self._column_N = np.cumsum(live_N) - 1
        everyone = np.arange(len(users))
        known_UK = users.interest_matrix(everyone, np.full(len(users), max(day - STALE_DAYS, 0)))
        believed_UK = (1.0 - config.policy_noise) * known_UK + config.policy_noise * self._noise_UK
        appeal_N = (
            config.policy_popularity * np.log(self._clicks_N[self._live])
            + config.policy_bid * self._value_log_N[self._live]
        )
        affinity_UN = believed_UK.astype(np.float32) @ (
            np.float32(config.policy_affinity) * self._topics_NK[self._live].T
        )
        affinity_UN += (appeal_N - appeal_N.max()).astype(np.float32)
        shares_UN = np.exp(affinity_UN, out=affinity_UN)
        capped = self._clicked[live_N[self._clicked[:, 1]]]
        shares_UN[capped[:, 0], self._column_N[capped[:, 1]]] *= CAP
        shares_UN /= shares_UN.sum(axis=1, keepdims=True)
        self._shares_UN = shares_UN

    def mean_shares(self) -> FloatArray:
        """Return the share of slots each ad would get from all users by activity, exploration included, [N]."""
        weight_U = self._users.activity_U / self._users.activity_U.sum()
        share_N = np.zeros(len(self._column_N))
        share_N[self._live] = (1.0 - self._config.exploration) * (weight_U.astype(np.float32) @ self._shares_UN)
        share_N[self._live] += self._config.exploration / len(self._live)
        return share_N

    def propose(self, users_R: IntArray) -> IntArray:
        """Draw ads for requests with repeats, [R, list length + SPARE_DRAWS]."""
        draws = self._config.list_length + SPARE_DRAWS
        points_RM = self._rng.random((len(users_R), draws))
        columns_RM = np.empty((len(users_R), draws), dtype=np.int64)
        order = np.argsort(users_R, kind="stable")
        bounds = np.searchsorted(users_R[order], np.arange(0, len(self._users) + USER_CHUNK, USER_CHUNK))
        for chunk, (start, end) in enumerate(pairwise(bounds)):
            rows = order[start:end]
            first = chunk * USER_CHUNK
            cumulative = np.cumsum(self._shares_UN[first : first + USER_CHUNK], axis=1, dtype=np.float64)
            cumulative /= cumulative[:, -1:]
            n_rows, n_live = cumulative.shape
            # One sorted sequence out of all rows: row r's shares lie between r and r + 1.
            cumulative += np.arange(n_rows)[:, None]
            row_R = users_R[rows] - first
            found = np.searchsorted(cumulative.ravel(), points_RM[rows] + row_R[:, None], side="right")
            columns_RM[rows] = np.clip(found - row_R[:, None] * n_live, 0, n_live - 1)
        explored_RM = self._rng.random(columns_RM.shape) < self._config.exploration
        columns_RM[explored_RM] = self._rng.integers(0, len(self._live), int(explored_RM.sum()))
        return self._live[columns_RM]

    def lists(
        self, users_R: IntArray, proposals_RM: IntArray, paused_N: NDArray[np.bool_]
    ) -> tuple[IntArray, FloatArray]:
        """Turn proposals into lists without repeats and paused ads.

        Returns:
            Ads, [R, L], −1 where the proposals did not suffice; and their propensities, given the slots before.
        """
        usable_RM = ~paused_N[proposals_RM]
        for column in range(1, proposals_RM.shape[1]):
            usable_RM[:, column] &= ~(proposals_RM[:, :column] == proposals_RM[:, column : column + 1]).any(axis=1)
        length = self._config.list_length
        order_RL = np.argsort(~usable_RM, axis=1, kind="stable")[:, :length]
        ads_RL = np.where(
            np.take_along_axis(usable_RM, order_RL, axis=1), np.take_along_axis(proposals_RM, order_RL, axis=1), -1
        )
        share_RL = self._mixed(self._shares_UN[users_R[:, None], self._column_N[ads_RL]]) * (ads_RL >= 0)
        paused = np.flatnonzero(paused_N[self._live])
        paused_R = self._mixed(self._shares_UN[users_R[:, None], paused[None, :]]).sum(axis=1)
        taken_RL = np.cumsum(share_RL, axis=1) - share_RL
        return ads_RL, share_RL / np.maximum(1.0 - paused_R[:, None] - taken_RL, 1e-9)

    def _mixed(self, shares: Float32Array) -> FloatArray:
        exploration = self._config.exploration
        return np.asarray((1.0 - exploration) * shares.astype(np.float64) + exploration / len(self._live))
