"""What ads pay: true eCPM, charges, daily budgets and the loop that paces them.

`eCPM(u, a, t) = 1000 · p(examined) · p(click) · (cpc + p(conversion | click) · p(reported) · cpa)` in micros:
a campaign pays its bid per click (cpc) or per reported conversion (cpa), never both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.ads import Ads
from gr4ad_tools.simulate.behaviour import Outcomes, Probabilities
from gr4ad_tools.simulate.scenarios import CONVERSION_TYPES, DAY_S, MarketConfig
from gr4ad_tools.simulate.traffic import START, day_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PACING_SLACK = 0.15  # share of the daily budget that may be spent ahead of the clock
LEAST_EVENTS = 2.0  # paid events that every daily budget is enough for
CPC = CONVERSION_TYPES.index("click")


class Money:
    """Bids, charges and budgets of a market."""

    def __init__(self, config: MarketConfig, ads: Ads) -> None:
        self._config, self._ads = config, ads
        self._log_end = START + config.days * DAY_S
        self._pays_click_N = ads.conversion_type_N == CPC
        self.budget_G = np.full(len(ads.budget_G), np.inf)
        self._spent_G = np.zeros(len(ads.budget_G))
        self._day = 0
        self._pending = np.zeros((0, 3))  # due time, ad, charge

    def bids(self, time: float) -> IntArray:
        """Return the bids of all ads at a unix time, in micros per paid event, [N]."""
        return self._ads.bid_micros_N if time < self._log_end else self._ads.later_bid_micros_N

    def ecpm(self, truth: Probabilities, ads_RL: IntArray, times_R: FloatArray) -> FloatArray:
        """Return the true eCPM of lists in micros, [R, L]; 0 in empty slots."""
        bid_RL = self._bids_RL(ads_RL, times_R)
        paid_RL = np.where(self._pays_click_N[ads_RL], 1.0, truth.conversion_RL * truth.reported_RL)
        return np.asarray(1000.0 * truth.examined_RL * truth.click_RL * paid_RL * bid_RL)

    def value_per_click(self, time: float) -> FloatArray:
        """Return what a click on each ad is worth at base conversion rates, in micros, [N]: public knowledge."""
        rate_V = np.ones(len(CONVERSION_TYPES))
        for name, rate in self._config.cvr:
            rate_V[CONVERSION_TYPES.index(name)] = rate
        return np.asarray(self.bids(time) * rate_V[self._ads.conversion_type_N])

    def set_budgets(self, expected_spend_N: FloatArray) -> None:
        """Set daily budgets from what each ad would spend a day if nothing held it back, in micros."""
        n_campaigns = len(self.budget_G)
        expected_G = np.bincount(self._ads.campaign_N, expected_spend_N, minlength=n_campaigns)
        dearest_G = np.zeros(n_campaigns)
        np.maximum.at(dearest_G, self._ads.campaign_N, self._ads.bid_micros_N.astype(np.float64))
        fair_G = self._config.budget_share * self._ads.budget_G * expected_G
        self.budget_G = np.maximum(fair_G, LEAST_EVENTS * dearest_G)

    def charge(self, ads_RL: IntArray, outcomes: Outcomes, times_R: FloatArray) -> FloatArray:
        """Charge what came of lists: clicks at once, reported conversions when they are due.

        Returns:
            The charges in micros, [R, L].
        """
        paid_RL = np.where(self._pays_click_N[ads_RL], outcomes.clicked_RL, outcomes.reported_RL)
        charges_RL = self._bids_RL(ads_RL, times_R) * paid_RL
        due_RL = times_R[:, None] + outcomes.delay_s_RL
        self._pending = np.concatenate(
            [self._pending, np.stack([due_RL[paid_RL], ads_RL[paid_RL], charges_RL[paid_RL]], axis=1)]
        )
        return charges_RL

    def paused(self, time: float) -> NDArray[np.bool_]:
        """Return which ads the pacing loop holds back at a unix time, [N].

        A campaign is held back while it has spent more of its daily budget than the share of the day that has passed
        plus a slack, and never spends beyond the budget but by what comes in late.
        """
        self._settle(time)
        passed = (time - START) % DAY_S / DAY_S
        over_G = self._spent_G >= self.budget_G * min(1.0, passed + PACING_SLACK)
        return np.asarray(over_G[self._ads.campaign_N])

    def _bids_RL(self, ads_RL: IntArray, times_R: FloatArray) -> FloatArray:
        later_R1 = (times_R >= self._log_end)[:, None]
        bids_RL = np.where(later_R1, self._ads.later_bid_micros_N[ads_RL], self._ads.bid_micros_N[ads_RL])
        return bids_RL.astype(np.float64)

    def _settle(self, time: float) -> None:
        """Book what was due by a unix time; what was due on earlier days is no longer of interest."""
        day = int(day_of(time))
        if day > self._day:
            self._day = day
            self._spent_G[:] = 0.0
        due = self._pending[:, 0] <= time
        today = due & (day_of(self._pending[:, 0]) == day)
        campaigns = self._ads.campaign_N[self._pending[today, 1].astype(np.int64)]
        np.add.at(self._spent_G, campaigns, self._pending[today, 2])
        self._pending = self._pending[~due]
