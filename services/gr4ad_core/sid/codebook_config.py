"""What a codebook to fit should look like (method.md §1.2)."""

from __future__ import annotations

from dataclasses import dataclass

from gr4ad_core.sid.business_code import PLACES, BusinessLevel

ADS_PER_FIRST_CODE = 12
PREFIXES_PER_AD = 20  # aimed at; rounding to powers of two halves or doubles it
MOST_FIRST_CODES = 16_384
LEAST_CODES = 64  # of a semantic level
SLOTS = 8  # of a bucket of business codes


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Describes a codebook to fit."""

    level_sizes: tuple[int, ...]
    """Codes V_t of every level, coarse to fine; the last is the business level."""
    embedding_dim: int = 256
    """Length D of the vectors that it quantises."""
    business_signals: tuple[str, ...] = ("conversion_type",)
    """Signals in the high bits of the business code, the highest first; see `BusinessLevel`."""
    seed: int = 0
    """Of the sampling and the first centroids."""
    iterations: int = 12
    """Iterations of balanced k-means a level."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A field is out of range.
        """
        if len(self.level_sizes) < 2 or min(self.level_sizes) < 1:
            remedy = "give a positive size for each of two or more levels, the last one for business codes"
            raise ValueError(f"level_sizes: {self.level_sizes}: {remedy}")
        for name in ("embedding_dim", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}: give a positive number")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed}: give 0 or more")
        _ = self.business

    @property
    def business(self) -> BusinessLevel:
        """The last level."""
        return BusinessLevel(self.level_sizes[-1], self.business_signals)


def default_level_sizes(n_ads: int, business_signals: int = 1) -> tuple[int, int, int]:
    """Return level sizes for a catalogue of `n_ads` ads and a number of business signals, all powers of two.

    About a dozen ads share a code of the first level, and semantic prefixes outnumber ads by ten or more, so that a
    prefix rarely holds more than a few creatives; each value of the business signals gets 8 codes.

    Raises:
        ValueError: `n_ads` is not positive.
    """
    if n_ads < 1:
        raise ValueError(f"n_ads: {n_ads}: give the number of ads to expect, at least one")
    first = min(max(_power_of_two(-(-n_ads // ADS_PER_FIRST_CODE)), 2 * LEAST_CODES), MOST_FIRST_CODES)
    second = min(max(_power_of_two(-(-PREFIXES_PER_AD * n_ads // first)), LEAST_CODES), first // 2)
    return first, second, SLOTS * PLACES**business_signals


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
