"""Rewarded lists from the log, as online learning takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from gr4ad.reward.v1 import reward_pb2
from gr4ad_core.learning.online import NOT_SHOWN, RewardedCandidates
from gr4ad_core.learning.sampling import AdTable
from gr4ad_core.learning.value_label import CLICK, CONVERSION, ChargeRates

from rspo_trainer.list_history import history_of

PER_MILLE = 1000.0
HELD_OUT_OF = 10
"""One user in so many is held out: the gate measures on their lists, and nothing learns from them."""


class ListTranslator:
    """Translates lists by one reading of the catalogue."""

    def __init__(self, ads: AdTable, rates: ChargeRates) -> None:
        """Value clicks on `ads` at `rates`; conversion types that these do not know get the prior ones."""
        self.ads = ads
        self._row_of = {ad_id: row for row, ad_id in enumerate(ads.ad_ids)}
        self._keys = np.fromiter((_digest(ad_id) for ad_id in ads.ad_ids), np.int64, len(ads.ad_ids))
        kinds = np.array(ads.conversion_types)
        known = rates.of_types(ads.conversion_types)
        self._click_value = known.value_micros(ads.bid_micros, kinds, np.full(len(kinds), CLICK))
        self._conversion_value = known.value_micros(ads.bid_micros, kinds, np.full(len(kinds), CONVERSION))

    def translate(self, rewarded: reward_pb2.RewardedList) -> RewardedCandidates | None:
        """Return a list's known candidates with what came of them; None if nothing of it was shown."""
        outcomes: Mapping[str, reward_pb2.Outcome] = {outcome.ad_id: outcome for outcome in rewarded.outcomes}
        served = rewarded.served_list
        candidates = [ad for ad in served.candidates if ad.ad_id in self._row_of]
        if not any(ad.ad_id in outcomes for ad in candidates):
            return None
        rows = np.array([self._row_of[ad.ad_id] for ad in candidates])
        shown = np.array([ad.ad_id in outcomes for ad in candidates])
        worth = [self._worth(row, outcomes.get(ad.ad_id)) for row, ad in zip(rows, candidates, strict=True)]
        has_ref = bool(served.channel)
        history, _ = history_of(served, self.ads, self._row_of)
        return RewardedCandidates(
            user_key=_user_key(served),
            history=history,
            sids_NT=self.ads.sids[rows],
            keys_N=self._keys[rows],
            log_ref_N=np.array([ad.log_prob if has_ref else 0.0 for ad in candidates], np.float64),
            has_ref=has_ref,
            places_N=np.where(shown, np.cumsum(shown) - 1, NOT_SHOWN),
            click_value_N=self._click_value[rows],
            response_value_N=np.array(worth, np.float64),
        )

    def _worth(self, row: int, outcome: reward_pb2.Outcome | None) -> float:
        """Return what was paid for a response if anything was, else the expected charge behind it; 0 without one."""
        if outcome is None or not (outcome.click_count or outcome.conversion_count):
            return 0.0
        if outcome.revenue_micros:
            return PER_MILLE * outcome.revenue_micros
        return float((self._conversion_value if outcome.conversion_count else self._click_value)[row])


def is_held_out(served: reward_pb2.ServedList) -> bool:
    """Tell whether a list is held out, by its user; a list without one stands for itself."""
    return _user_key(served) % HELD_OUT_OF == 0


def _user_key(served: reward_pb2.ServedList) -> int:
    return _digest(served.user_context.user_id or served.request_id)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
