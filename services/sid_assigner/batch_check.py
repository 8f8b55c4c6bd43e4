"""What has to hold for a batch of ads beyond the limits that the contract states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gr4ad_runtime.errors import AlreadyExistsError, InvalidArgumentError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import Ad
from sid_assigner.models import AdRow

NUL = "\0"


def check_ads(request_id: str, ads: Sequence[Ad]) -> None:
    """Check a batch in itself.

    Raises:
        InvalidArgumentError: An ad is there twice, or a text holds NUL, which PostgreSQL cannot store.
    """
    remedy = "remove the character NUL"
    if NUL in request_id:
        raise InvalidArgumentError("request_id", repr(request_id), remedy)
    first: dict[str, int] = {}
    for index, ad in enumerate(ads):
        other = first.setdefault(ad.ad_id, index)
        if other != index:
            problem = f"{ad.ad_id!r} is also ads[{other}]"
            raise InvalidArgumentError(f"ads[{index}].ad_id", problem, "send each ad once")
        for field, text in _texts(ad):
            if NUL in text:
                raise InvalidArgumentError(f"ads[{index}].{field}", repr(text), remedy)


async def check_new(session: AsyncSession, ads: Sequence[Ad]) -> None:
    """Check that no ad of a batch exists.

    Raises:
        AlreadyExistsError: One does; names the first by its index.
    """
    known = set(await session.scalars(select(AdRow.ad_id).where(AdRow.ad_id.in_([ad.ad_id for ad in ads]))))
    for index, ad in enumerate(ads):
        if ad.ad_id in known:
            remedy = "the ad exists, leave it out or change it with UpdateAd"
            raise AlreadyExistsError(f"ads[{index}].ad_id", repr(ad.ad_id), remedy)


def _texts(ad: Ad) -> Iterator[tuple[str, str]]:
    content = ad.content
    yield "ad_id", ad.ad_id
    yield "title", content.title
    yield "brand", content.brand
    yield from ((f"categories[{level}]", category) for level, category in enumerate(content.categories))
    yield "description", content.description
    yield "advertiser_id", content.advertiser_id
