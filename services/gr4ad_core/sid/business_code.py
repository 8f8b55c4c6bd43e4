"""The last SID level: a business code hashed from what an ad is sold for, not from what it shows (method.md §1.2).

A level of V codes is cut into B equal buckets, B the largest power of two that is at most min(8, V):

    code = bucket · (V // B) + slot        bucket: conversion type        slot: hash of (advertiser, product)

so that for V a power of two the high bits say what is paid for. Two campaigns with one creative and different
conversion types differ in the bucket; an ad whose home code is taken moves to another slot, and leaves its bucket only
when that is full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

CONVERSION_TYPES: tuple[str, ...] = ("click", "install", "purchase", "lead", "follow")
MAX_BUCKETS = 8  # the power of two above the number of conversion types; the rest is room for overflow


@dataclass(frozen=True, slots=True)
class BusinessSignals:
    """Non-semantic signals of an ad.

    Attributes:
        conversion_type: One of CONVERSION_TYPES.
        advertiser_id: Account that pays.
        product_id: What is sold; the ad's own id where there is nothing better.
    """

    conversion_type: str
    advertiser_id: str
    product_id: str


def bucket_of(conversion_type: str, size: int) -> range:
    """Return the codes whose meaning is `conversion_type` in a level of `size` codes.

    Raises:
        ValueError: The conversion type is unknown or the level has no code.
    """
    if conversion_type not in CONVERSION_TYPES:
        raise ValueError(f"conversion_type: {conversion_type!r}: use one of {', '.join(CONVERSION_TYPES)}")
    if size < 1:
        raise ValueError(f"size: {size}: give the business level at least one code")
    n_buckets = _n_buckets(size)
    # Below 8 codes some types have to share a bucket.
    bucket = CONVERSION_TYPES.index(conversion_type) % n_buckets
    width = size // n_buckets
    return range(bucket * width, (bucket + 1) * width)


def home_code(signals: BusinessSignals, size: int) -> int:
    """Return the code in [0, size) that an ad gets where nobody has it yet.

    Raises:
        ValueError: The conversion type is unknown or the level has no code.
    """
    bucket = bucket_of(signals.conversion_type, size)
    return bucket[_slot_hash(signals) % len(bucket)]


def probe_codes(signals: BusinessSignals, size: int) -> Iterator[int]:
    """Yield every code of the level once, in the order in which an ad tries them.

    Home first, then the other slots of its bucket in a circle, then the codes after the bucket in a circle.

    Raises:
        ValueError: The conversion type is unknown or the level has no code.
    """
    bucket = bucket_of(signals.conversion_type, size)
    start = _slot_hash(signals) % len(bucket)
    for step in range(len(bucket)):
        yield bucket[(start + step) % len(bucket)]
    for step in range(size - len(bucket)):
        yield (bucket.stop + step) % size


def _n_buckets(size: int) -> int:
    return 1 << min(size, MAX_BUCKETS).bit_length() - 1


def _slot_hash(signals: BusinessSignals) -> int:
    # The length in front keeps ("ab", "c") apart from ("a", "bc").
    advertiser = signals.advertiser_id.encode()
    text = len(advertiser).to_bytes(8, "big") + advertiser + signals.product_id.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
