"""The request's context as data: the padded tensors made of user histories (method.md §2.1).

Shapes: B requests, S events, T SID levels, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.history import UserHistory

N_BEHAVIORS = 4  # 0 pads; 1 impression, 2 click, 3 conversion
N_GAP_BUCKETS = 32  # 0 unknown; b ≥ 1 holds gaps of [2^(b-1), 2^b) seconds, so the last one starts at 34 years


@dataclass(frozen=True)
class ContextInputs:
    """A batch of histories as padded tensors; events run from the latest (column 0) to the oldest.

    Latest first, so that an event's column is its recency and its vector does not depend on the batch around it.
    """

    sids_BST: Tensor
    """Codes of the events' ads, 0 in padding, int64."""
    behaviors_BS: Tensor
    """Behaviours, 0 in padding, int64."""
    gap_BS: Tensor
    """Bucket of the logarithmic time from the event to the request, 0 where unknown or padding, int64."""
    mask_BS: Tensor
    """True at real events."""
    feature_ids_BF: Tensor
    """Hash buckets of the features, 0 in padding, int64."""
    feature_mask_BF: Tensor
    """True at real features."""

    @property
    def batch_size(self) -> int:
        """Requests B."""
        return self.sids_BST.shape[0]

    def to(self, device: torch.device | str) -> ContextInputs:
        """Return the batch on `device`."""
        return ContextInputs(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


@lru_cache(maxsize=1 << 16)
def _feature_bucket(name: str, value: str, n_buckets: int) -> int:
    digest = hashlib.blake2b(f"{name}={value}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % n_buckets


def gap_buckets(request_times: NDArray[np.float64], event_times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bucket the time from event to request by its binary logarithm.

    Args:
        request_times: Unix seconds, NaN where unknown, any shape.
        event_times: Unix seconds, NaN where unknown, same shape.

    Returns:
        Buckets below `N_GAP_BUCKETS`; 0 where a time is unknown. Clocks that disagree (an event after the request)
        count as no gap.
    """
    gap = np.maximum(request_times - event_times, 0.0)
    bucket = np.minimum(1.0 + np.floor(np.log2(1.0 + gap)), N_GAP_BUCKETS - 1)
    return np.where(np.isnan(gap), 0.0, bucket).astype(np.int64)


def collate_contexts(histories: Sequence[UserHistory], config: LazyArConfig) -> ContextInputs:
    """Pad histories to the longest of the batch, the latest `max_history` events of each (method.md §2.1).

    Args:
        histories: One per request; an empty history is welcome.
        config: Gives T, `max_history` and the number of feature buckets.

    Raises:
        ValueError: Codes or behaviours are out of range, or arrays of one history differ in length.
    """
    n_levels, batch = config.n_levels, len(histories)
    for row, h in enumerate(histories):
        if h.sids.shape != (len(h.behaviors), n_levels) or len(h.event_times) != len(h.behaviors):
            raise ValueError(
                f"histories[{row}]: sids {h.sids.shape}, behaviors {h.behaviors.shape}, event_times "
                f"{h.event_times.shape}: give n events each, SIDs of {n_levels} levels"
            )
    lengths = np.fromiter((min(len(h.behaviors), config.max_history) for h in histories), np.int64, batch)
    ends = np.cumsum(lengths)
    rows = np.repeat(np.arange(batch), lengths)
    columns = np.repeat(ends, lengths) - 1 - np.arange(len(rows))  # recency: 0 is the latest event
    longest = int(lengths.max(initial=0))

    sids_BST = np.zeros((batch, longest, n_levels), np.int64)
    behaviors_BS = np.zeros((batch, longest), np.int64)
    gap_BS = np.zeros((batch, longest), np.int64)
    if len(rows):
        latest = [(h, len(h.behaviors) - n) for h, n in zip(histories, lengths.tolist(), strict=True)]
        sids = np.concatenate([h.sids[start:] for h, start in latest])
        behaviors = np.concatenate([h.behaviors[start:] for h, start in latest])
        times = np.concatenate([h.event_times[start:] for h, start in latest])
        request_times = np.fromiter((h.request_time for h in histories), np.float64, batch)
        if ((sids < 0) | (sids >= np.array(config.level_sizes))).any():
            raise ValueError(f"histories.sids: codes up to {sids.max(0)}: give codes below {config.level_sizes}")
        if ((behaviors < 1) | (behaviors >= N_BEHAVIORS)).any():
            raise ValueError(
                f"histories.behaviors: {behaviors.min()} to {behaviors.max()}: give 1 (impression) to 3 (conversion)"
            )
        sids_BST[rows, columns] = sids
        behaviors_BS[rows, columns] = behaviors
        gap_BS[rows, columns] = gap_buckets(request_times[rows], times)

    buckets = [
        [_feature_bucket(name, value, config.n_feature_buckets) for name, value in sorted(h.features.items())]
        if config.n_feature_buckets
        else []
        for h in histories
    ]
    widest = max(map(len, buckets), default=0)
    feature_counts = np.fromiter(map(len, buckets), np.int64, batch)
    feature_mask_BF = np.arange(widest) < feature_counts[:, None]
    feature_ids_BF = np.zeros((batch, widest), np.int64)
    feature_ids_BF[feature_mask_BF] = [bucket for row in buckets for bucket in row]
    return ContextInputs(
        sids_BST=torch.from_numpy(sids_BST),
        behaviors_BS=torch.from_numpy(behaviors_BS),
        gap_BS=torch.from_numpy(gap_BS),
        mask_BS=torch.from_numpy(np.arange(longest) < lengths[:, None]),
        feature_ids_BF=torch.from_numpy(feature_ids_BF),
        feature_mask_BF=torch.from_numpy(feature_mask_BF),
    )
