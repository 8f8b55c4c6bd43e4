"""The reward model: how likely a shown ad is to get a response, learned from what was shown (method.md §3.2, §5).

    p(response | y, X, shown at place k) = σ( w · [ 1, log p(y|X), log click rate of y, log(1 + k) ] )

A list holds one response in a hundred impressions: realised rewards alone hardly order it. This model orders every
candidate, shown or not, by what is known of the user (the likelihood), of the ad (its rate so far) and of its place,
and it is calibrated, so that probability times value is an expected eCPM.
Shapes: M shown ads, A distinct ads; any shape as `...`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PRIOR_IMPRESSIONS = 20.0
"""Impressions at the mean rate that every ad starts with: an ad shown a few times leans on all others."""
RIDGE = 1.0
"""Penalty on squared weights of standardised features, in units of observations; none on the intercept."""
NEWTON_STEPS = 8
LEAST_RESPONSES = 50
"""Responses from which on four weights can be told apart."""


@dataclass(frozen=True)
class ShownAds:
    """Ads that were shown, and whether they got a response."""

    keys_M: IntArray
    """Which ad, any number that is the ad's own."""
    log_prob_M: FloatArray
    """log p(y|X) as logged when the list was served."""
    places_M: IntArray
    """Place among the shown ads of its list, from 0."""
    responded_M: NDArray[np.bool_]
    """Clicked or converted."""


class RewardModel:
    """Logistic regression over the latest shown ads; `fit` solves it anew."""

    def __init__(self, window: int) -> None:
        """Make a model that has seen nothing.

        Args:
            window: Shown ads that are remembered; older ones are forgotten, and with them their ads' rates.
        """
        self._window = window
        empty = np.zeros(0)
        self._seen = ShownAds(empty.astype(np.int64), empty, empty.astype(np.int64), empty.astype(bool))
        self._weights = np.zeros(4)
        self._rate_keys_A = np.zeros(0, np.int64)
        self._log_rates_A = np.zeros(0)
        self._mean_rate = float("nan")

    @property
    def ready(self) -> bool:
        """Whether there were enough responses to fit to."""
        return bool(np.isfinite(self._mean_rate))

    def observe(self, shown: ShownAds) -> None:
        """Remember shown ads; they count from the next `fit` on."""
        names = ("keys_M", "log_prob_M", "places_M", "responded_M")
        columns = {n: np.concatenate([getattr(self._seen, n), getattr(shown, n)])[-self._window :] for n in names}
        self._seen = ShownAds(**columns)

    def fit(self) -> bool:
        """Fit to what is remembered; return False, and change nothing, while there are too few responses."""
        seen = self._seen
        responses = int(seen.responded_M.sum())
        if responses < LEAST_RESPONSES or responses == len(seen.responded_M):
            return False
        mean_rate = responses / len(seen.responded_M)
        keys_A, ad_M = np.unique(seen.keys_M, return_inverse=True)
        shown_A = np.bincount(ad_M, minlength=len(keys_A)).astype(np.float64)
        responded_A = np.bincount(ad_M, weights=seen.responded_M).astype(np.float64)
        # Without the observation itself: a rate that holds the answer would be believed too much.
        others_M = _log_rate(responded_A[ad_M] - seen.responded_M, shown_A[ad_M] - 1.0, mean_rate)
        features_MF = _features(seen.log_prob_M, others_M, seen.places_M)
        mean_F, scale_F = features_MF.mean(axis=0), features_MF.std(axis=0)
        mean_F[0], scale_F[scale_F == 0.0] = 0.0, 1.0
        weights_F = _logistic((features_MF - mean_F) / scale_F, seen.responded_M.astype(np.float64))
        self._weights = weights_F / scale_F
        self._weights[0] = weights_F[0] - (mean_F[1:] * self._weights[1:]).sum()
        self._rate_keys_A, self._log_rates_A = keys_A, _log_rate(responded_A, shown_A, mean_rate)
        self._mean_rate = mean_rate
        return True

    def response_rate(self, keys: IntArray, log_prob: FloatArray, places: IntArray | int) -> FloatArray:
        """Return the probability of a response to ads if shown, `[...]`.

        Args:
            keys: The ads; one never shown has the mean rate.
            log_prob: log p(y|X) of each, as logged.
            places: Place of each among the shown ads, from 0.

        Raises:
            ValueError: The model is not fitted.
        """
        if not self.ready:
            raise ValueError(f"reward model: fewer than {LEAST_RESPONSES} responses seen: observe more, then fit")
        found = np.searchsorted(self._rate_keys_A, keys).clip(max=len(self._rate_keys_A) - 1)
        known = self._rate_keys_A[found] == keys
        log_rates = np.where(known, self._log_rates_A[found], np.log(self._mean_rate))
        logits: FloatArray = _features(log_prob, log_rates, np.broadcast_to(places, keys.shape)) @ self._weights
        return 1.0 / (1.0 + np.exp(-logits))

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return all of the model as arrays by name."""
        return {
            "keys": self._seen.keys_M,
            "log_prob": self._seen.log_prob_M,
            "places": self._seen.places_M,
            "responded": self._seen.responded_M,
            "weights": self._weights,
            "rate_keys": self._rate_keys_A,
            "log_rates": self._log_rates_A,
            "mean_rate": np.array(self._mean_rate),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Become the model that `state` was taken of."""
        self._seen = ShownAds(
            keys_M=state["keys"].astype(np.int64),
            log_prob_M=state["log_prob"].astype(np.float64),
            places_M=state["places"].astype(np.int64),
            responded_M=state["responded"].astype(np.bool_),
        )
        self._weights = state["weights"].astype(np.float64)
        self._rate_keys_A = state["rate_keys"].astype(np.int64)
        self._log_rates_A = state["log_rates"].astype(np.float64)
        self._mean_rate = float(state["mean_rate"])


def _log_rate(responses: FloatArray, shown: FloatArray, mean_rate: float) -> FloatArray:
    rate: FloatArray = np.log((responses + PRIOR_IMPRESSIONS * mean_rate) / (shown + PRIOR_IMPRESSIONS))
    return rate


def _features(log_prob: FloatArray, log_rates: FloatArray, places: IntArray) -> FloatArray:
    return np.stack([np.ones_like(log_prob), log_prob, log_rates, np.log1p(places)], axis=-1)


def _logistic(features_MF: FloatArray, targets_M: FloatArray) -> FloatArray:
    """Return the weights of a logistic regression with a ridge, by Newton's method from the base rate."""
    penalty_F = np.full(features_MF.shape[1], RIDGE)
    penalty_F[0] = 0.0
    weights_F = np.zeros(features_MF.shape[1])
    rate = targets_M.mean()
    weights_F[0] = np.log(rate / (1.0 - rate))
    for _ in range(NEWTON_STEPS):
        p_M = 1.0 / (1.0 + np.exp(-(features_MF @ weights_F)))
        gradient_F = features_MF.T @ (p_M - targets_M) + penalty_F * weights_F
        curvature_FF = (features_MF.T * (p_M * (1.0 - p_M))) @ features_MF + np.diag(penalty_F)
        weights_F = weights_F - np.linalg.solve(curvature_FF, gradient_F)
    return weights_F
