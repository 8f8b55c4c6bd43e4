"""The split of users: sticky, even, independent of other splits."""

from __future__ import annotations

import hashlib

import ad_generator.arrival
import numpy as np
import pytest
from gr4ad_tools.split import BUCKET_HEADER, BUCKETS, Split, bucket_of

USERS = [f"user-{number}" for number in range(10_000)]
# A χ² of k degrees of freedom has mean k and variance 2k; six standard deviations above are never seen by chance.
LIMIT_BUCKETS = 99 + 6 * (2 * 99) ** 0.5
LIMIT_TABLE = 81 + 6 * (2 * 81) ** 0.5


def chi_square(counts: np.ndarray, expected: np.ndarray | float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_a_user_stays_in_a_bucket_on_every_machine() -> None:
    digest = hashlib.blake2b(b"user-7", digest_size=8, key=b"spring").digest()
    assert bucket_of("user-7", "spring") == int.from_bytes(digest, "big") % 100
    split = Split("spring", 10)
    assert [split.bucket(user) for user in USERS] == [Split("spring", 50).bucket(user) for user in USERS]
    assert bucket_of("Jürgen-用户", "é") in range(100)


def test_buckets_are_evenly_filled() -> None:
    counts = np.bincount([bucket_of(user, "spring") for user in USERS], minlength=BUCKETS)
    assert len(counts) == BUCKETS
    assert chi_square(counts, len(USERS) / BUCKETS) < LIMIT_BUCKETS


def test_splits_of_different_salts_are_independent() -> None:
    table = np.zeros((10, 10))
    for user in USERS:
        table[bucket_of(user, "spring") // 10, bucket_of(user, "summer") // 10] += 1
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert chi_square(table, expected) < LIMIT_TABLE


def test_a_larger_share_only_adds_users_to_the_canary() -> None:
    canaries = [{u for u in USERS if Split("s", percent).channel(u) == "canary"} for percent in (0, 10, 50, 100)]
    assert canaries[0] == set()
    assert canaries[-1] == set(USERS)
    assert canaries[1] < canaries[2]
    assert len(canaries[1]) == pytest.approx(1000, abs=150)
    assert {Split("s", 10).channel(user) for user in USERS} == {"canary", "stable"}


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_share_out_of_range_is_refused(percent: int) -> None:
    with pytest.raises(ValueError, match=f"^canary_percent: {percent}: give 0 to 100$"):
        Split("spring", percent)


def test_a_salt_that_is_too_long_is_refused() -> None:
    assert Split("é" * 32, 10).bucket("user") in range(100)
    with pytest.raises(ValueError, match="^salt: 66 bytes: give at most 64$"):
        Split("é" * 33, 10)


def test_the_header_is_the_one_that_the_generator_reads() -> None:
    assert BUCKET_HEADER == ad_generator.arrival.BUCKET_HEADER
