"""The logged history: users come, the logging policy shows, users respond, budgets run out, day after day."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.ads import Ads
from gr4ad_tools.simulate.behaviour import Behaviour
from gr4ad_tools.simulate.logging_policy import LoggingPolicy
from gr4ad_tools.simulate.money import Money
from gr4ad_tools.simulate.scenarios import DAY_S, MarketConfig
from gr4ad_tools.simulate.traffic import START, Arrivals, day_arrivals
from gr4ad_tools.simulate.users import Users

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

IMPRESSION, CLICK, CONVERSION = 1, 2, 3
PACING_S = 3600.0  # the pacing loop looks at budgets this often
CLICK_AFTER_S = 4.0  # a click follows its impression by this much


@dataclass(frozen=True)
class EventLog:
    """What the log holds, and counts of what it was drawn from.

    Attributes:
        users_E: User of each kept event; events are in order of user and time.
        ads_E: Ad.
        times_E: Unix time.
        behaviors_E: 1 impression without a click, 2 click, 3 reported conversion.
        slots_E: Slot of the impression it goes back to, from 0.
        propensities_E: Probability with which the logging policy put the ad there, given the slots before.
        requests: Requests in all.
        impressions_N: Impressions of each ad, with and without a click.
        clicks_N: Clicks of each ad.
        conversions_N: Conversions of each ad reported before the end of the log.
        revenue_micros: Charges for all requests of the log, those not yet due included.
    """

    users_E: IntArray
    ads_E: IntArray
    times_E: FloatArray
    behaviors_E: IntArray
    slots_E: IntArray
    propensities_E: FloatArray
    requests: int
    impressions_N: IntArray
    clicks_N: IntArray
    conversions_N: IntArray
    revenue_micros: float

    def __len__(self) -> int:
        return len(self.users_E)


class Logger:
    """Makes the log of a market."""

    def __init__(
        self,
        config: MarketConfig,
        ads: Ads,
        users: Users,
        behaviour: Behaviour,
        money: Money,
        policy: LoggingPolicy,
        rng: np.random.Generator,
    ) -> None:
        self._config, self._ads, self._users = config, ads, users
        self._behaviour, self._money, self._policy, self._rng = behaviour, money, policy, rng
        self._kept: list[NDArray[np.float64]] = []
        self._impressions_N = np.zeros(len(ads), dtype=np.int64)
        self._clicks_N = np.zeros(len(ads), dtype=np.int64)
        self._revenue = 0.0
        self._requests = 0

    def run(self) -> EventLog:
        """Run all days and return the log."""
        for day in range(self._config.days):
            self._policy.prepare(day, (self._ads.start_day_N <= day) & (self._ads.end_day_N > day))
            arrivals = day_arrivals(self._config, self._users, day, self._rng)
            proposals_RM = self._policy.propose(arrivals.users_R)
            midnight = START + day * DAY_S
            cuts = np.searchsorted(arrivals.times_R, midnight + np.arange(0.0, DAY_S + 1.0, PACING_S))
            for hour, (start, end) in enumerate(pairwise(cuts)):
                if end > start:
                    part = Arrivals(arrivals.users_R[start:end], arrivals.times_R[start:end])
                    self._serve(part, proposals_RM[start:end], self._money.paused(midnight + hour * PACING_S))
        return self._log()

    def _serve(self, arrivals: Arrivals, proposals_RM: IntArray, paused_N: NDArray[np.bool_]) -> None:
        users_R, times_R = arrivals.users_R, arrivals.times_R
        ads_RL, propensity_RL = self._policy.lists(users_R, proposals_RM, paused_N)
        outcomes = self._behaviour.respond(users_R, ads_RL, times_R, self._rng)
        self._revenue += float(self._money.charge(ads_RL, outcomes, times_R).sum())
        shown_RL = ads_RL >= 0
        clicked_RL = outcomes.clicked_RL
        self._requests += len(arrivals)
        np.add.at(self._impressions_N, ads_RL[shown_RL], 1)
        np.add.at(self._clicks_N, ads_RL[clicked_RL], 1)
        self._policy.learn(np.broadcast_to(users_R[:, None], ads_RL.shape)[clicked_RL], ads_RL[clicked_RL])
        sampled_RL = shown_RL & ~clicked_RL
        sampled_RL &= self._rng.random(ads_RL.shape, dtype=np.float32) < self._config.skipped_impression_rate
        for mask_RL, behavior, delay_RL in (
            (sampled_RL, IMPRESSION, np.zeros(ads_RL.shape)),
            (clicked_RL, CLICK, np.full(ads_RL.shape, CLICK_AFTER_S)),
            (outcomes.reported_RL, CONVERSION, outcomes.delay_s_RL + CLICK_AFTER_S),
        ):
            rows, slots = np.nonzero(mask_RL)
            columns = (
                users_R[rows],
                ads_RL[mask_RL],
                times_R[rows] + delay_RL[mask_RL],
                np.full(len(rows), behavior),
                slots,
                propensity_RL[mask_RL],
            )
            self._kept.append(np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1))

    def _log(self) -> EventLog:
        events = np.concatenate(self._kept) if self._kept else np.zeros((0, 6))
        events = events[events[:, 2] < START + self._config.days * DAY_S]  # what comes later nobody has logged yet
        events = events[np.lexsort((events[:, 4], events[:, 2], events[:, 0]))]
        users, ads, behaviors, slots = (events[:, column].astype(np.int64) for column in (0, 1, 3, 4))
        return EventLog(
            users_E=users,
            ads_E=ads,
            times_E=events[:, 2],
            behaviors_E=behaviors,
            slots_E=slots,
            propensities_E=events[:, 5],
            requests=self._requests,
            impressions_N=self._impressions_N,
            clicks_N=self._clicks_N,
            conversions_N=np.bincount(ads[behaviors == CONVERSION], minlength=len(self._ads)),
            revenue_micros=self._revenue,
        )
