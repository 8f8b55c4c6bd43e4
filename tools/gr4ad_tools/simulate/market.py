"""The simulated market: one object that writes its history as data, knows the truth, and answers what is shown.

A policy is given the data folder, users' histories, and outcomes. The judge, and nobody else, holds the Market.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.simulate.ads import make_ads
from gr4ad_tools.simulate.behaviour import Behaviour
from gr4ad_tools.simulate.data_folder import item_records, write_folder
from gr4ad_tools.simulate.event_log import EventLog, Logger
from gr4ad_tools.simulate.fatigue import Fatigue
from gr4ad_tools.simulate.logging_policy import LoggingPolicy
from gr4ad_tools.simulate.money import Money
from gr4ad_tools.simulate.scenarios import DAY_S, MarketConfig, scenario
from gr4ad_tools.simulate.traffic import START, Arrivals, day_arrivals, day_of
from gr4ad_tools.simulate.users import make_users
from gr4ad_tools.simulate.version import version_hash

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CALIBRATION_REQUESTS = 4000
CHUNK_PAIRS = 1 << 18  # pairs of user and ad that are scored at once


@dataclass(frozen=True)
class Response:
    """What users did with lists, as far as anybody can learn of it, [R, L] each.

    Attributes:
        ads_RL: Ads as shown; every one of them is an impression, −1 is an empty slot.
        clicked_RL: Clicks.
        converted_RL: Conversions that will be reported.
        delay_s_RL: Time from click to the report; 0 where there is none.
        charge_micros_RL: What the advertiser pays, for the click or for the reported conversion.
    """

    ads_RL: IntArray
    clicked_RL: NDArray[np.bool_]
    converted_RL: NDArray[np.bool_]
    delay_s_RL: FloatArray
    charge_micros_RL: FloatArray


class Market:
    """A market of one scenario and one seed.

    Users and ads are numbered from 0; `user_index` and `ad_index` translate public ids. Times are unix seconds: the log
    runs from `start` to `end`, and online time follows. Responses move the market on: users tire, budgets are spent.
    From then on time must not go back: what was spent and seen is known as of the latest time only.
    """

    def __init__(self, name: str = "steady", seed: int = 0, config: MarketConfig | None = None, **changes: Any) -> None:
        """Make a market.

        Args:
            name: A scenario of `scenarios.SCENARIOS`.
            seed: Source of every random choice.
            config: A configuration of one's own instead of the scenario's.
            changes: Fields of the configuration to change.

        Raises:
            ValueError: Unknown scenario, or a value out of its range.
        """
        self.config = replace(config or scenario(name), **changes)
        self.seed = seed
        self.start = START
        self.end = START + self.config.days * DAY_S
        rng_ads, rng_users, rng_policy, rng_calibration, self._rng_log = (
            np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5)
        )
        self._ads = make_ads(self.config, rng_ads)
        self._users = make_users(self.config, rng_users)
        self._fatigue = Fatigue(self.config, self._ads)
        self._behaviour = Behaviour(self.config, self._ads, self._users, self._fatigue)
        self._money = Money(self.config, self._ads)
        self._policy = LoggingPolicy(
            self.config, self._ads, self._users, self._money.value_per_click(START), rng_policy
        )
        self._calibrate(rng_calibration)
        self._handed_out = self.config.ads
        self.user_ids = self._users.user_ids
        self.item_ids = self._ads.item_ids
        self.user_index = {user_id: number for number, user_id in enumerate(self.user_ids)}
        self.ad_index = {item_id: number for number, item_id in enumerate(self.item_ids)}

    def _calibrate(self, rng: np.random.Generator) -> None:
        """Set base rates and budgets by what the logging policy would do at noon of the first day."""
        self._policy.prepare(0, np.ones(len(self._ads), dtype=bool))
        shares = self._users.activity_U / self._users.activity_U.sum()
        users_R = rng.choice(len(self._users), size=CALIBRATION_REQUESTS, p=shares)
        ads_RL, _ = self._policy.lists(users_R, self._policy.propose(users_R), np.zeros(len(self._ads), dtype=bool))
        self._behaviour.calibrate(users_R, ads_RL, np.full(len(users_R), START + DAY_S / 2))
        config = self.config
        impressions = config.users * config.sessions_per_day * config.session_length * config.list_length
        spend_N = self._policy.mean_shares() * impressions * config.ctr * self._money.value_per_click(START)
        self._money.set_budgets(spend_N)

    @property
    def version(self) -> str:
        """Hash of the simulator's code and this market's configuration; belongs into every summary."""
        return version_hash(self.config)

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """The catalogue as of the end of the log, in the form of `items.jsonl`, in the order of the ad numbers."""
        return item_records(self._ads, range(self.config.ads), self.config.days)

    @cached_property
    def log(self) -> EventLog:
        """The logged history; made when first asked for, which also tires users as the log's lists did."""
        logger = Logger(self.config, self._ads, self._users, self._behaviour, self._money, self._policy, self._rng_log)
        return logger.run()

    def write_folder(self, folder: Path | str) -> EventLog:
        """Write catalogue and log as a normalised data folder, and return the log with its counts."""
        write_folder(Path(folder), self.items, self._ads, self._users, self.log)
        return self.log

    def new_ads(self, n: int) -> list[dict[str, Any]]:
        """Return `n` further ads in the form of `items.jsonl`; they are live from now on and no log knows them.

        Raises:
            ValueError: Fewer are left.
        """
        left = len(self._ads) - self._handed_out
        if not 0 <= n <= left:
            raise ValueError(f"n is {n}: {left} new ads are left, raise new_ads in the configuration for more")
        numbers = range(self._handed_out, self._handed_out + n)
        self._handed_out += n
        return item_records(self._ads, numbers, self.config.days)

    def bid_changes(self) -> dict[str, int]:
        """Return the bids in micros that change when the log ends, by item id: public, empty but for `shift`."""
        changed = np.flatnonzero(self._ads.bid_micros_N != self._ads.later_bid_micros_N)
        return {self.item_ids[ad]: int(self._ads.later_bid_micros_N[ad]) for ad in changed}

    def bids(self, time: float) -> IntArray:
        """Return the bids of all ads at a time in micros, [N]: public."""
        return self._money.bids(time)

    def budgets(self) -> tuple[IntArray, FloatArray]:
        """Return the campaign of each ad, [N], and its daily budget in micros, [G]: public."""
        return self._ads.campaign_N, self._money.budget_G

    def value_per_click(self, time: float) -> FloatArray:
        """Return what a click on each ad pays at the base rates of its conversion type, in micros, [N]: public."""
        return self._money.value_per_click(time)

    def live(self, time: float) -> NDArray[np.bool_]:
        """Return which ads may be shown at a time: begun, not ended, within their pace of spending, [N]."""
        day = int(day_of(time))
        begun_N = (self._ads.start_day_N <= day) & (np.arange(len(self._ads)) < self._handed_out)
        return np.asarray(begun_N & (self._ads.end_day_N > day) & ~self._money.paused(time))

    def arrivals(self, day: int, rng: np.random.Generator) -> Arrivals:
        """Draw the requests of a day, counted from the start of the log."""
        return day_arrivals(self.config, self._users, day, rng)

    def logged_pages(self, user_indices: IntArray) -> IntArray:
        """Return what the logging policy shows users at the end of the log, [R, list length]: public.

        An empty slot is −1. Nothing is learned from it, and no budget is looked at.
        """
        _ = self.log  # the policy goes by what it has logged
        users_R = np.asarray(user_indices, dtype=np.int64)
        ads_RL, _ = self._policy.lists(users_R, self._policy.propose(users_R), np.zeros(len(self._ads), dtype=bool))
        return ads_RL

    def true_ecpm(
        self, user_indices: IntArray, ad_indices: IntArray, time: float | FloatArray, slots: IntArray | None = None
    ) -> FloatArray:
        """Return true eCPM in micros: the judge's, never a policy's.

        Args:
            user_indices: Users, [n].
            ad_indices: Ads, [n, k]; −1 is an empty slot and worth 0.
            time: Unix time of all, or of each, [n].
            slots: Slot of each column from 0, [k]; each ad in the first slot by default.

        Returns:
            Micros, [n, k].
        """
        users_R, ads_RL = np.asarray(user_indices, dtype=np.int64), np.asarray(ad_indices, dtype=np.int64)
        times_R = np.broadcast_to(np.asarray(time, dtype=np.float64), users_R.shape)
        slots_L = np.zeros(ads_RL.shape[1], dtype=np.int64) if slots is None else np.asarray(slots, dtype=np.int64)
        ecpm = np.empty(ads_RL.shape)
        step = max(1, CHUNK_PAIRS // max(1, ads_RL.shape[1]))
        for start in range(0, len(users_R), step):
            part = slice(start, start + step)
            truth = self._behaviour.probabilities(users_R[part], ads_RL[part], times_R[part], slots_L)
            ecpm[part] = self._money.ecpm(truth, ads_RL[part], times_R[part])
        return ecpm

    def respond(
        self, user_index: int, ad_indices: Sequence[int] | IntArray, time: float, rng: np.random.Generator
    ) -> Response:
        """Show one list to one user; a batch of one of `respond_many`."""
        ads_RL = np.asarray(ad_indices, dtype=np.int64)[None, :]
        return self.respond_many(np.array([user_index]), ads_RL, np.array([time]), rng)

    def respond_many(
        self, user_indices: IntArray, ad_indices: IntArray, times: FloatArray, rng: np.random.Generator
    ) -> Response:
        """Show lists to users, draw what they do, charge for it and remember what they saw.

        Args:
            user_indices: Users, [R].
            ad_indices: Ads in the order shown, [R, L]; −1 is an empty slot.
            times: Unix times, [R].
            rng: Source of the draws.
        """
        outcomes = self._behaviour.respond(user_indices, ad_indices, times, rng)
        charges_RL = self._money.charge(ad_indices, outcomes, times)
        return Response(
            ad_indices,
            outcomes.clicked_RL,
            outcomes.reported_RL,
            np.where(outcomes.reported_RL, outcomes.delay_s_RL, 0.0),
            charges_RL,
        )
