"""Every ad of a codebook's catalogue in flat arrays, one slot per ad.

A slot is given once and kept: a SID never moves within a codebook and the catalogue forgets no ad, so a slot that was
read from an older index is still true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from gr4ad.sid.v1 import sid_pb2
from numpy.typing import NDArray

FIRST_CAPACITY = 1024


@dataclass(frozen=True)
class TableView:
    """A table's first `size` slots as they are now; later growth of the table does not move these arrays."""

    sids: NDArray[np.int64]
    """SIDs, `[size, T]`."""
    live: NDArray[np.bool_]
    """Whether each ad may be shown, `[size]`."""


class AdTable:
    """Maps ads to slots, SIDs and states; changed by one thread, read by any."""

    def __init__(self, n_levels: int) -> None:
        """Make an empty table of SIDs with `n_levels` codes."""
        self.n_levels = n_levels
        self.ad_ids: list[str] = []
        """Ad of every slot."""
        self.live_slots: set[int] = set()
        """Slots of the ads that may be shown at this moment; the same as `live`, for single look-ups."""
        self._slots: dict[str, int] = {}
        self._sids = np.zeros((FIRST_CAPACITY, n_levels), np.int64)
        self._live = np.zeros(FIRST_CAPACITY, np.bool_)

    def __len__(self) -> int:
        return len(self.ad_ids)

    def apply(self, entries: Iterable[sid_pb2.CatalogEntry]) -> bool:
        """Take over the full state of some ads.

        Args:
            entries: In commit order; a later one of the same ad replaces the earlier.

        Returns:
            Whether the set of live ads changed, so that an index of it is out of date.

        Raises:
            ValueError: A SID has another number of levels than the table.
        """
        changed = False
        for entry in entries:
            live = entry.state == sid_pb2.AD_STATE_ACTIVE
            slot = self._slots.get(entry.ad_id)
            if slot is None:
                slot = self._append(entry.ad_id, entry.sid.codes)
                changed |= live
            else:
                changed |= bool(self._live[slot]) != live
            self._live[slot] = live
            (self.live_slots.add if live else self.live_slots.discard)(slot)
        return changed

    def slots(self, ad_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the slots of ads, -1 for an unknown one, `[len(ad_ids)]`."""
        get = self._slots.get
        return np.fromiter((get(ad_id, -1) for ad_id in ad_ids), np.int64, len(ad_ids))

    def sids(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the SIDs of slots, `[..., T]`."""
        return self._sids[slots]

    def live(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the ads of slots may be shown at this moment, same shape."""
        return self._live[slots]

    def is_live(self, ad_id: str) -> bool:
        """Return whether the table knows the ad and it may be shown at this moment."""
        slot = self._slots.get(ad_id)
        return slot in self.live_slots

    def view(self) -> TableView:
        """Return the arrays of all slots given so far."""
        size = len(self.ad_ids)
        return TableView(self._sids[:size], self._live[:size])

    def _append(self, ad_id: str, codes: Sequence[int]) -> int:
        if len(codes) != self.n_levels:
            raise ValueError(f"sid of ad {ad_id}: {list(codes)}: give {self.n_levels} codes, one per level")
        slot = len(self.ad_ids)
        if slot == len(self._live):  # new arrays instead of a resize: readers may hold the old ones
            self._sids = np.concatenate([self._sids, np.zeros_like(self._sids)])
            self._live = np.concatenate([self._live, np.zeros_like(self._live)])
        self._sids[slot] = codes
        self.ad_ids.append(ad_id)
        self._slots[ad_id] = slot  # last, since from here on other threads find the slot
        return slot
