"""The content of an ad, and the instruction templates that turn it into one text (method.md §1.1)."""

from __future__ import annotations

from dataclasses import dataclass

# One per ad type: what kind of thing the ad shows decides which words stand around its fields.
INSTRUCTIONS: dict[str, str] = {
    "short_video": "Short video ad: describe what the clip shows and whom it is for.",
    "live_stream": "Live stream ad: describe what the host sells and whom it is for.",
    "product": "Product ad: describe the product and what it is used for.",
    "external": "External advertiser ad: describe the landing page and what it offers.",
    "virtual_product": "Virtual product ad: describe the app, game or service and what it does.",
    "local_service": "Local service ad: describe the service and the occasion for it.",
}
"""Instruction by ad type."""

AD_TYPES: tuple[str, ...] = tuple(INSTRUCTIONS)


@dataclass(frozen=True, slots=True)
class AdContent:
    """What an ad says; every text may be empty.

    Attributes:
        title: Title of the creative.
        brand: Brand.
        categories: Category path, coarse to fine.
        description: Description of the creative.
        advertiser_id: Account that pays.
        ad_type: One of AD_TYPES.
    """

    title: str
    brand: str
    categories: tuple[str, ...]
    description: str
    advertiser_id: str
    ad_type: str


def render(ad: AdContent) -> str:
    """Render an ad by the template of its type; empty fields leave no line behind.

    The account is left out where it repeats the brand, so that it is not counted twice.

    Raises:
        ValueError: The ad type is none of AD_TYPES.
    """
    if ad.ad_type not in INSTRUCTIONS:
        raise ValueError(f"ad_type: {ad.ad_type!r}: use one of {', '.join(AD_TYPES)}")
    fields = (
        ("Title", ad.title),
        ("Brand", ad.brand),
        ("Category", " > ".join(category for category in ad.categories if category.strip())),
        ("Description", ad.description),
        ("Advertiser", "" if ad.advertiser_id == ad.brand else ad.advertiser_id),
    )
    lines = [f"{name}: {value.strip()}" for name, value in fields if value.strip()]
    return "\n".join([INSTRUCTIONS[ad.ad_type], *lines])
