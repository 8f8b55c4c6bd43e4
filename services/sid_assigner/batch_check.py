"""What has to hold for a batch of ads beyond the limits that the contract states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from gr4ad_runtime.errors import AlreadyExistsError, InvalidArgumentError
from sqlalchemy import ARRAY, any_, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import Ad
from sid_assigner.models import AdRow, Identifier

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


async def known_ads(session: AsyncSession, ads: Sequence[Ad]) -> set[str]:
    """Return the ids of the ads that exist."""
    ad_ids = literal([ad.ad_id for ad in ads], ARRAY(Identifier))
    return set(await session.scalars(select(AdRow.ad_id).where(AdRow.ad_id == any_(ad_ids))))


def check_new(ads: Sequence[Ad], known: Set[str]) -> None:
    """Check that no ad of a batch is known.

    Raises:
        AlreadyExistsError: One is; names the first by its index.
    """
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
