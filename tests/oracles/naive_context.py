"""What the model reads of one user, event by event, with Python numbers only (method.md §2.1)."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.history import UserHistory


@dataclass(frozen=True)
class NaiveEvent:
    """One event as the model sees it."""

    codes: tuple[int, ...]
    behavior: int
    gap_bucket: int
    recency: int


def naive_events(history: UserHistory, config: LazyArConfig) -> list[NaiveEvent]:
    """Latest first, `max_history` at most."""
    events = []
    for recency, i in enumerate(reversed(range(len(history.behaviors)))):
        if recency == config.max_history:
            break
        gap = history.request_time - float(history.event_times[i])
        bucket = 0 if math.isnan(gap) else min(1 + math.floor(math.log2(1 + max(gap, 0.0))), 31)
        codes = tuple(int(code) for code in history.sids[i])
        events.append(NaiveEvent(codes, int(history.behaviors[i]), bucket, recency))
    return events


def naive_feature_ids(history: UserHistory, config: LazyArConfig) -> list[int]:
    """Hash bucket of every feature, by name."""
    ids = []
    for name in sorted(history.features):
        digest = hashlib.blake2b(f"{name}={history.features[name]}".encode(), digest_size=8).digest()
        ids.append(int.from_bytes(digest, "big") % config.n_feature_buckets)
    return ids


def naive_sid_hash(codes: tuple[int, ...], n_buckets: int) -> int:
    """The hash of a whole SID in 64-bit two's complement, done with unbounded integers."""
    mixed = 0
    for code in codes:
        mixed = ((mixed ^ code) * 0x5851F42D4C957F2D) % 2**64
        signed = mixed - 2**64 if mixed >= 2**63 else mixed
        mixed = (signed ^ (signed >> 29)) % 2**64
    signed = mixed - 2**64 if mixed >= 2**63 else mixed
    return signed % n_buckets
