"""New bids and states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from gr4ad_runtime.db import Database
from sqlalchemy import select, update

from sid_assigner.ad_lookup import get_by_ad, unknown_ad
from sid_assigner.ads import AdSid
from sid_assigner.catalog_feed import Change, append_changes, feed_end
from sid_assigner.codebook_registry import CodebookRegistry
from sid_assigner.models import AdRow


@dataclass(frozen=True, slots=True)
class UpdatedAd:
    """An ad as it now is, with a number in the feed at or past the change that made it so."""

    ad_sid: AdSid
    cursor: int


async def update_ad(
    database: Database,
    registry: CodebookRegistry,
    ad_id: str,
    *,
    bid_micros: int | None,
    state: str | None,
    traceparent: str,
) -> UpdatedAd:
    """Change an ad's bid or state; None leaves it as it is. What changes nothing is no change in the feed.

    Raises:
        NotFoundError: The ad is unknown.
    """
    async with database.session() as session:
        # The lock puts updates of one ad in a row; what the ad was is read after it, by a statement of its own.
        lock = select(AdRow.ad_id).where(AdRow.ad_id == ad_id).with_for_update(key_share=True)
        if "\0" in ad_id or (await session.execute(lock)).one_or_none() is None:
            raise unknown_ad("ad_id", ad_id)
        codebook = await registry.find(session, "")
        ad = await get_by_ad(session, codebook, ad_id)
        new_bid = ad.bid_micros if bid_micros is None else bid_micros
        new_state = ad.state if state is None else state
        if (new_bid, new_state) == (ad.bid_micros, ad.state):
            return UpdatedAd(ad, await feed_end(session))
        now = datetime.now(UTC)
        await session.execute(
            update(AdRow)
            .where(AdRow.ad_id == ad_id)
            .values(bid_micros=new_bid, state=new_state, update_time=now)
            .execution_options(synchronize_session=False)
        )
        change = Change(
            ad_id=ad_id,
            state=new_state,
            bid_micros=new_bid,
            advertiser_id=ad.advertiser_id,
            conversion_type=ad.conversion_type,
        )
        cursor = await append_changes(session, [change], traceparent=traceparent, change_time=now)
        return UpdatedAd(replace(ad, bid_micros=new_bid, state=new_state, update_time=now), cursor)
