"""An ad as the service handles it, and what is known of it once it has a SID."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from gr4ad_core.sid.ad_content import AdContent
from gr4ad_core.sid.business_code import BusinessSignals
from numpy.typing import NDArray

ACTIVE = "active"
PAUSED = "paused"
ACCOUNT_LENGTH = 128  # the contract's limit; a brand may be longer
DEFAULT_AD_TYPE = "product"
DEFAULT_CONVERSION_TYPE = "purchase"


@dataclass(frozen=True, slots=True)
class Ad:
    """An ad with every default applied.

    Attributes:
        ad_id: Caller's identifier, unique for ever.
        content: What the text encoder reads; holds the paying account as well.
        conversion_type: What is paid for.
        bid_micros: Bid per paid event, in micros.
        state: `active` or `paused`.
        embedding: The caller's own vector, float32 [D], or None.
    """

    ad_id: str
    content: AdContent
    conversion_type: str
    bid_micros: int
    state: str
    embedding: NDArray[np.float32] | None

    @property
    def signals(self) -> BusinessSignals:
        """Non-semantic signals behind the business code (method.md §1.2)."""
        return BusinessSignals(
            conversion_type=self.conversion_type,
            ad_type=self.content.ad_type,
            advertiser_id=self.content.advertiser_id,
            product_id=self.ad_id,
        )


def make_ad(
    *,
    ad_id: str,
    title: str = "",
    brand: str = "",
    categories: Sequence[str] = (),
    description: str = "",
    advertiser_id: str = "",
    ad_type: str = "",
    conversion_type: str = "",
    bid_micros: int = 0,
    state: str = "",
    embedding: Sequence[float] = (),
) -> Ad:
    """Make an ad from what a caller stated; an empty string or vector means not stated.

    The account that pays defaults to the brand, then to the ad itself.
    """
    return Ad(
        ad_id=ad_id,
        content=AdContent(
            title=title,
            brand=brand,
            categories=tuple(categories),
            description=description,
            advertiser_id=advertiser_id or brand[:ACCOUNT_LENGTH] or ad_id,
            ad_type=ad_type or DEFAULT_AD_TYPE,
        ),
        conversion_type=conversion_type or DEFAULT_CONVERSION_TYPE,
        bid_micros=bid_micros,
        state=state or ACTIVE,
        embedding=np.asarray(embedding, dtype=np.float32) if len(embedding) else None,
    )


@dataclass(frozen=True, slots=True)
class AdSid:
    """An ad with its SID under one codebook."""

    ad_id: str
    codebook_id: str
    codes: tuple[int, ...]
    advertiser_id: str
    conversion_type: str
    bid_micros: int
    state: str
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """An ad's state as of a snapshot (no `change_time`, no `traceparent`) or after a change."""

    ad_id: str
    codes: tuple[int, ...]
    state: str
    bid_micros: int
    advertiser_id: str
    conversion_type: str
    traceparent: str = ""
    change_time: datetime | None = None
