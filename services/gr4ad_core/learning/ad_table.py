"""The catalogue as training sees it.

Shapes: A ads, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AdTable:
    """The ads a policy is trained to write, in columns."""

    ad_ids: list[str]
    """The caller's ids, unique."""
    sids: NDArray[np.int64]
    """Their SIDs, `[A, T]`."""
    bid_micros: NDArray[np.int64]
    """Bid per charged event in micros, `[A]`."""
    conversion_types: list[str]
    """What each ad pays for: click, install, purchase, lead or follow."""

    def __post_init__(self) -> None:
        """Check that the columns agree.

        Raises:
            ValueError: Columns differ in length, or an ad id occurs twice.
        """
        count = len(self.ad_ids)
        if self.sids.ndim != 2 or {len(self.sids), len(self.bid_micros), len(self.conversion_types)} != {count}:
            raise ValueError(
                f"ads: {count} ids, sids {self.sids.shape}, {len(self.bid_micros)} bids, "
                f"{len(self.conversion_types)} conversion types: give one of each per ad"
            )
        if len(set(self.ad_ids)) != count:
            twice = next(ad_id for ad_id in self.ad_ids if self.ad_ids.count(ad_id) > 1)
            raise ValueError(f"ads.ad_ids: {twice} occurs twice: give every ad once")
