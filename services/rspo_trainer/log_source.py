"""Samples from the reward log: served lists, and what the users made of them.

An ad with a click or a conversion is a target. An ad that was shown without any response is none (method.md §3.3); it
still counts in the rates at which clicks and conversions follow, and so in the value of the targets.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from gr4ad.reward.v1 import reward_pb2
from gr4ad_core.learning.sampling import AdTable, TrainingSet
from gr4ad_core.learning.value_label import ChargeRates
from gr4ad_core.model.history import UserHistory
from gr4ad_runtime.errors import FailedPreconditionError
from numpy.typing import NDArray

from rspo_trainer.list_history import history_of

IMPRESSION, CLICK, CONVERSION = 1, 2, 3
PER_MILLE = 1000.0


class LogSamples:
    """Collects samples as the lists come in.

    Attributes:
        lists: Lists seen.
    """

    def __init__(self, ads: AdTable) -> None:
        """Collect samples of the ads in `ads`; others are skipped and counted."""
        self.lists = 0
        self._ads = ads
        self._row_of = {ad_id: row for row, ad_id in enumerate(ads.ad_ids)}
        self._skipped = 0
        # Of all outcomes, for the rates: rows of ads, and impressions, clicks and conversions.
        self._outcome_rows: list[int] = []
        self._outcome_counts: list[tuple[int, int, int]] = []
        # Of the lists that hold a target.
        self._histories: list[UserHistory] = []
        self._users: list[int] = []
        self._user_numbers: dict[str, int] = {}
        # Of the targets.
        self._list_of_target: list[int] = []
        self._target_rows: list[int] = []
        self._behaviors: list[int] = []
        self._revenue_micros: list[int] = []

    def add(self, rewarded: reward_pb2.RewardedList) -> None:
        """Take the samples of one list."""
        self.lists += 1
        has_target = False
        for outcome in rewarded.outcomes:
            row = self._row_of.get(outcome.ad_id)
            if row is None:
                self._skipped += 1
                continue
            self._outcome_rows.append(row)
            self._outcome_counts.append((outcome.impression_count, outcome.click_count, outcome.conversion_count))
            if outcome.click_count or outcome.conversion_count:
                has_target = True
                self._list_of_target.append(len(self._histories))
                self._target_rows.append(row)
                self._behaviors.append(CONVERSION if outcome.conversion_count else CLICK)
                self._revenue_micros.append(outcome.revenue_micros)
        if has_target:
            history, skipped = history_of(rewarded.served_list, self._ads, self._row_of)
            self._skipped += skipped
            self._histories.append(history)
            self._users.append(self._user(rewarded.served_list.user_context.user_id))

    def training_set(self) -> TrainingSet:
        """Return the samples of all lists.

        Raises:
            FailedPreconditionError: No list holds a click or a conversion of an ad in the catalogue.
        """
        if not self._target_rows:
            problem = f"{self.lists} lists, none with a click or a conversion of an ad in the catalogue"
            remedy = "report feedback for what was served, or start from an earlier cursor"
            raise FailedPreconditionError("reward_log", problem, remedy)
        target_rows = np.array(self._target_rows)
        rates = self._rates()
        samples = TrainingSet.from_lists(
            histories=self._histories,
            users=self._users,
            list_M=np.array(self._list_of_target, np.int64),
            target_sids_MT=self._ads.sids[target_rows],
            behaviors_M=np.array(self._behaviors, np.int64),
            value_micros_M=self._values(target_rows, rates),
            ad_sids_AT=self._ads.sids,
        )
        return replace(samples, skipped_events=self._skipped, charge_rates=rates)

    def _rates(self) -> ChargeRates:
        kinds = np.array(self._ads.conversion_types)
        counts = np.array(self._outcome_counts)
        return ChargeRates.measure(
            np.repeat(kinds[np.repeat(self._outcome_rows, 3)], counts.ravel()),
            np.repeat(np.tile([IMPRESSION, CLICK, CONVERSION], len(counts)), counts.ravel()),
        )

    def _values(self, target_rows: NDArray[np.int64], rates: ChargeRates) -> NDArray[np.float64]:
        """Return the targets' values: what was paid if anything was, else the expected charge behind the response."""
        kinds = np.array(self._ads.conversion_types)
        behaviors = np.array(self._behaviors)
        expected = rates.value_micros(self._ads.bid_micros[target_rows], kinds[target_rows], behaviors)
        paid = PER_MILLE * np.array(self._revenue_micros, np.float64)
        return np.where(paid > 0.0, paid, expected)

    def _user(self, user_id: str) -> int:
        # A list of a user whom the caller keeps to itself stands alone.
        key = user_id or f"\0{len(self._users)}"
        return self._user_numbers.setdefault(key, len(self._user_numbers))
