"""The last SID level: a business code hashed from what an ad is sold for, not from what it shows (method.md §1.2).

    code = bucket · slots + slot        bucket: what is paid for, and other signals        slot: hash (account, product)

Each signal has PLACES places in the number of the bucket, so that for a level of a power of two codes the high bits are
the signals, the first of them highest. Two campaigns with one creative and different conversion types differ in the
bucket. An ad whose home code is taken moves to another slot; only when its bucket is full does it leave it, and then
keeps as many of its first signals as it can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from gr4ad_core.sid.ad_content import AD_TYPES

CONVERSION_TYPES: tuple[str, ...] = ("click", "install", "purchase", "lead", "follow")
SIGNAL_VALUES: dict[str, tuple[str, ...]] = {"conversion_type": CONVERSION_TYPES, "ad_type": AD_TYPES}
"""What each signal that a business code can show may be; the order is for ever, for codes are stored with ads."""
PLACES = 8  # of a signal: the power of two above the number of its values; the rest is room for overflow


@dataclass(frozen=True, slots=True)
class BusinessSignals:
    """Non-semantic signals of an ad.

    Attributes:
        conversion_type: One of CONVERSION_TYPES.
        ad_type: One of AD_TYPES.
        advertiser_id: Account that pays.
        product_id: What is sold; the ad's own id where there is nothing better.
    """

    conversion_type: str
    ad_type: str
    advertiser_id: str
    product_id: str


@dataclass(frozen=True)
class BusinessLevel:
    """How business codes are made."""

    size: int
    """Codes of the level."""
    signals: tuple[str, ...] = ("conversion_type",)
    """Signals in the high bits, keys of SIGNAL_VALUES, the highest first."""

    def __post_init__(self) -> None:
        """Check that the level holds its signals; one signal alone may be given less room, and its values share it.

        Raises:
            ValueError: A signal is unknown, given twice or missing, or the level is too small.
        """
        known = ", ".join(SIGNAL_VALUES)
        if (
            not self.signals
            or len(set(self.signals)) < len(self.signals)
            or not set(self.signals) <= set(SIGNAL_VALUES)
        ):
            raise ValueError(f"business_signals: {', '.join(self.signals) or 'none'}: give some of {known}, each once")
        least = 1 if len(self.signals) == 1 else PLACES ** len(self.signals)
        if self.size < least:
            shown = f"for {', '.join(self.signals)}"
            raise ValueError(f"level_sizes: {self.size} business codes: give the last level {least} or more {shown}")

    def bucket_of(self, ad: BusinessSignals) -> range:
        """Return the codes whose high bits are an ad's signals.

        Raises:
            ValueError: A signal has no such value.
        """
        return self._bucket(ad, len(self.signals))

    def home_code(self, ad: BusinessSignals) -> int:
        """Return the code in [0, size) that an ad gets where nobody has it yet.

        Raises:
            ValueError: A signal has no such value.
        """
        return next(self.probe_codes(ad))

    def probe_codes(self, ad: BusinessSignals) -> Iterator[int]:
        """Yield every code of the level once, in the order in which an ad tries them.

        Home first, then the other slots of its bucket in a circle, then the codes after the bucket, in a circle through
        those that share all signals but the last, all but the last two, and so on to the whole level.

        Raises:
            ValueError: A signal has no such value.
        """
        tried = self.bucket_of(ad)
        start = _slot_hash(ad) % len(tried)
        for step in range(len(tried)):
            yield tried[(start + step) % len(tried)]
        for shared in reversed(range(len(self.signals))):
            around = self._bucket(ad, shared)
            for step in range(len(around) - len(tried)):
                yield around[(tried.stop - around.start + step) % len(around)]
            tried = around

    def _bucket(self, ad: BusinessSignals, shared: int) -> range:
        """Return the codes of ads with the same first `shared` signals."""
        number = 0
        for name in self.signals:
            value = getattr(ad, name)
            if value not in SIGNAL_VALUES[name]:
                raise ValueError(f"{name}: {value!r}: use one of {', '.join(SIGNAL_VALUES[name])}")
            number = number * PLACES + SIGNAL_VALUES[name].index(value)
        if not shared:
            return range(self.size)
        buckets = 1 << min(self.size, PLACES ** len(self.signals)).bit_length() - 1
        inside = min(PLACES ** (len(self.signals) - shared), buckets)
        # Below 8 codes some values have to share a bucket.
        first = number % buckets // inside * inside
        slots = self.size // buckets
        return range(first * slots, (first + inside) * slots)


def _slot_hash(ad: BusinessSignals) -> int:
    # The length in front keeps ("ab", "c") apart from ("a", "bc").
    advertiser = ad.advertiser_id.encode()
    text = len(advertiser).to_bytes(8, "big") + advertiser + ad.product_id.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
