"""Look-ups of ads and their SIDs, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gr4ad_runtime.errors import InvalidArgumentError, NotFoundError
from sqlalchemy import ARRAY, Select, any_, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import AdSid
from sid_assigner.codebook_registry import RegisteredCodebook
from sid_assigner.models import AdRow, AdSidRow, Identifier

Row = tuple[Any, ...]


def by_ads(codebook_id: str, ad_ids: Sequence[str]) -> Select[*Row]:
    """Select these ads with their SIDs under a codebook."""
    return _ad_sids(codebook_id).where(AdRow.ad_id == any_(literal(list(ad_ids), ARRAY(Identifier))))


def by_sid(codebook_id: str, codes: Sequence[int]) -> Select[*Row]:
    """Select the ad that has this SID under a codebook."""
    return _ad_sids(codebook_id).where(AdSidRow.semantic_codes == list(codes[:-1]), AdSidRow.business_code == codes[-1])


async def get_by_ads(session: AsyncSession, codebook: RegisteredCodebook, ad_ids: Sequence[str]) -> list[AdSid]:
    """Return ads in the order asked for.

    Raises:
        NotFoundError: One is unknown; names the first by its index.
    """
    storable = [ad_id for ad_id in ad_ids if "\0" not in ad_id]  # no ad has such an id, and PostgreSQL refuses it
    found = {row.ad_id: _ad_sid(row) for row in await session.execute(by_ads(codebook.codebook_id, storable))}
    for index, ad_id in enumerate(ad_ids):
        if ad_id not in found:
            raise unknown_ad(f"ad_ids[{index}]", ad_id)
    return [found[ad_id] for ad_id in ad_ids]


async def get_by_ad(session: AsyncSession, codebook: RegisteredCodebook, ad_id: str) -> AdSid:
    """Return one ad.

    Raises:
        NotFoundError: It is unknown.
    """
    try:
        return (await get_by_ads(session, codebook, [ad_id]))[0]
    except NotFoundError as error:
        raise unknown_ad("ad_id", ad_id) from error


@dataclass(frozen=True, slots=True)
class AdPage:
    """Ads by their ids, and the last id where more follow; empty where none do."""

    ad_sids: list[AdSid]
    last: str


def listed(codebook_id: str, *, advertiser_id: str, state: str, after: str, limit: int) -> Select[*Row]:
    """Select ads by their ids from behind `after` on; an empty account or state stands for all."""
    statement = _ad_sids(codebook_id).where(AdRow.ad_id > after).order_by(AdRow.ad_id).limit(limit)
    if advertiser_id:
        statement = statement.where(AdRow.advertiser_id == advertiser_id)
    if state:
        statement = statement.where(AdRow.state == state)
    return statement


async def list_ads(
    session: AsyncSession, codebook: RegisteredCodebook, *, advertiser_id: str, state: str, after: str, size: int
) -> AdPage:
    """Return a page of ads. What is created or changed between two pages is met or not, and nothing else moves.

    Args:
        session: Reads.
        codebook: Of the SIDs.
        advertiser_id: Account that pays; empty for all.
        state: `active` or `paused`; empty for both.
        after: Id that the page begins behind; empty for the first one.
        size: Ads at most.
    """
    if "\0" in advertiser_id:  # no account has such an id, and PostgreSQL refuses it
        return AdPage([], "")
    statement = listed(codebook.codebook_id, advertiser_id=advertiser_id, state=state, after=after, limit=size + 1)
    found = [_ad_sid(row) for row in await session.execute(statement)]
    return AdPage(found[:size], found[size - 1].ad_id if len(found) > size else "")


async def get_by_sid(session: AsyncSession, codebook: RegisteredCodebook, codes: Sequence[int]) -> AdSid:
    """Return the ad that has this SID.

    Raises:
        InvalidArgumentError: It cannot be a SID of the codebook.
        NotFoundError: No ad has it.
    """
    _check_codes(codes, codebook)
    row = (await session.execute(by_sid(codebook.codebook_id, codes))).one_or_none()
    if row is None:
        remedy = f"no ad of codebook {codebook.codebook_id!r} has it, check the codebook it was read from"
        raise NotFoundError("sid.codes", str(list(codes)), remedy)
    return _ad_sid(row)


def _ad_sids(codebook_id: str) -> Select[*Row]:
    columns = (
        AdRow.ad_id,
        AdSidRow.codebook_id,
        AdSidRow.semantic_codes,
        AdSidRow.business_code,
        AdRow.advertiser_id,
        AdRow.conversion_type,
        AdRow.bid_micros,
        AdRow.state,
        AdRow.create_time,
        AdRow.update_time,
    )
    return select(*columns).join(AdSidRow, AdSidRow.ad_id == AdRow.ad_id).where(AdSidRow.codebook_id == codebook_id)


def _ad_sid(row: Any) -> AdSid:
    return AdSid(
        ad_id=row.ad_id,
        codebook_id=row.codebook_id,
        codes=(*row.semantic_codes, row.business_code),
        advertiser_id=row.advertiser_id,
        conversion_type=row.conversion_type,
        bid_micros=row.bid_micros,
        state=row.state,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def _check_codes(codes: Sequence[int], codebook: RegisteredCodebook) -> None:
    levels = len(codebook.level_sizes)
    if len(codes) != levels:
        remedy = f"a SID of codebook {codebook.codebook_id!r} has {levels} codes"
        raise InvalidArgumentError("sid.codes", f"{len(codes)} codes", remedy)
    for level, (code, size) in enumerate(zip(codes, codebook.level_sizes, strict=True)):
        if code >= size:
            remedy = f"codes of this level of codebook {codebook.codebook_id!r} are below {size}"
            raise InvalidArgumentError(f"sid.codes[{level}]", str(code), remedy)


def unknown_ad(field: str, ad_id: str) -> NotFoundError:
    """Make the error of an ad that does not exist."""
    return NotFoundError(field, repr(ad_id), "no such ad, create it with BatchCreateAdSids first")
