"""The sticky split of an A/B test: a user's bucket is a keyed hash of the user's id, so it needs no memory.

The same salt gives the same split on every machine and at every time; another salt gives one that is independent of it.
Raising the canary's share moves users from stable to canary only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

BUCKETS: Final = 100
BUCKET_HEADER: Final = "gr4ad-bucket"
"""Header of a request in which the generator reads the bucket that it logs with the list."""
STABLE: Final = "stable"
CANARY: Final = "canary"


def bucket_of(user_id: str, salt: str) -> int:
    """Return a user's bucket, 0 to 99.

    Raises:
        ValueError: The salt is longer than a key of the hash may be.
    """
    key = salt.encode()
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        raise ValueError(f"salt: {len(key)} bytes: give at most {hashlib.blake2b.MAX_KEY_SIZE}")
    digest = hashlib.blake2b(user_id.encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "big") % BUCKETS


@dataclass(frozen=True, slots=True)
class Split:
    """Which users the canary serves.

    Attributes:
        salt: Key of the hash; one per experiment, so that no group of users is in every canary.
        canary_percent: Share of the users, 0 to 100.
    """

    salt: str
    canary_percent: int

    def __post_init__(self) -> None:
        """Refuse a split that is none."""
        if not 0 <= self.canary_percent <= BUCKETS:
            raise ValueError(f"canary_percent: {self.canary_percent}: give 0 to {BUCKETS}")
        bucket_of("", self.salt)

    def bucket(self, user_id: str) -> int:
        """Return a user's bucket, 0 to 99; send it in the header `BUCKET_HEADER`."""
        return bucket_of(user_id, self.salt)

    def channel(self, user_id: str) -> str:
        """Return the channel whose generator serves a user."""
        return CANARY if self.bucket(user_id) < self.canary_percent else STABLE
