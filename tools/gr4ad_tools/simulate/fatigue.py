"""What users have seen lately: decayed exposures to creatives and accounts.

`E_uc(t) = Σ_events weight · exp(−(t − t_event) / τ)`, kept dense as float32 [users, creatives], as of each user's last
event, so that an update touches only the rows of the users it is about.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.ads import Ads
from gr4ad_tools.simulate.scenarios import DAY_S, MarketConfig

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Fatigue:
    """Exposures of all users."""

    def __init__(self, config: MarketConfig, ads: Ads) -> None:
        self._config = config
        self._creative_N, self._account_N = ads.creative_N, ads.account_N
        self._by_creative = np.zeros((config.users, int(ads.creative_N.max()) + 1), dtype=np.float32)
        self._by_account = np.zeros((config.users, int(ads.account_N.max()) + 1), dtype=np.float32)
        self._time_U = np.zeros(config.users)

    def log_odds(self, users_R: IntArray, ads_RL: IntArray, times_R: FloatArray) -> NDArray[np.float32]:
        """Return what exposures take from the click log-odds, [R, L], zero or less."""
        decay_R1 = self._decay(users_R, times_R)[:, None]
        users_R1 = users_R[:, None]
        creative_RL = self._by_creative[users_R1, self._creative_N[ads_RL]] * decay_R1
        account_RL = self._by_account[users_R1, self._account_N[ads_RL]] * decay_R1
        config = self._config
        lost_RL = config.fatigue_creative * np.log1p(creative_RL) + config.fatigue_account * np.log1p(account_RL)
        return np.asarray(-lost_RL, dtype=np.float32)

    def expose(self, users_R: IntArray, ads_RL: IntArray, weights_RL: NDArray[np.float32], times_R: FloatArray) -> None:
        """Add exposures; the same user may be in several rows."""
        latest_U = np.zeros_like(self._time_U)
        np.maximum.at(latest_U, users_R, times_R)
        touched = np.unique(users_R)
        latest = np.maximum(latest_U[touched], self._time_U[touched])
        decay = self._decay(touched, latest)[:, None]
        self._by_creative[touched] *= decay
        self._by_account[touched] *= decay
        self._time_U[touched] = latest
        users_RL = np.broadcast_to(users_R[:, None], ads_RL.shape)
        np.add.at(self._by_creative, (users_RL, self._creative_N[ads_RL]), weights_RL)
        np.add.at(self._by_account, (users_RL, self._account_N[ads_RL]), weights_RL)

    def _decay(self, users: IntArray, times: FloatArray) -> NDArray[np.float32]:
        age = np.maximum(times - self._time_U[users], 0.0)
        return np.exp(-age / (self._config.fatigue_days * DAY_S)).astype(np.float32)
