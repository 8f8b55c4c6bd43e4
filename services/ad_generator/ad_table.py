"""Every ad of a codebook's catalogue in flat arrays, one slot per ad.

A slot is given once and kept: a SID never moves within a codebook and the catalogue forgets no ad, so a slot that was
read from an older index is still true.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from gr4ad.sid.v1 import sid_pb2
from numpy.typing import NDArray

FIRST_CAPACITY = 1024
FEWEST_FLIPS: Final = 4096
FLIPS_SHARE: Final = 32
"""A reader that is behind by more than a 32nd of the ads (and by FEWEST_FLIPS) gets all live ones, which is faster."""


@dataclass(frozen=True)
class TableView:
    """A table's first `size` slots as they are now; later growth of the table does not move these arrays."""

    sids: NDArray[np.int64]
    """SIDs, `[size, T]`."""
    live: NDArray[np.bool_]
    """Whether each ad may be shown, `[size]`."""


class AdTable:
    """Maps ads to slots, SIDs, accounts and states; changed by one thread, read by any."""

    def __init__(self, level_sizes: tuple[int, ...]) -> None:
        """Make an empty table of SIDs of a codebook with such levels."""
        self.level_sizes = level_sizes
        self.ad_ids: list[str] = []
        """Ad of every slot."""
        self.live_slots: set[int] = set()
        """Slots of the ads that may be shown at this moment; the same as `live`, for single look-ups."""
        self._advertiser_ids: list[str] = []
        self._slots: dict[str, int] = {}
        self._sids = np.zeros((FIRST_CAPACITY, len(level_sizes)), np.int64)
        self._live = np.zeros(FIRST_CAPACITY, np.bool_)
        self.arrivals = 0
        """How often an ad came to life so far."""
        self._last_arrivals = np.zeros(level_sizes[0], np.int64)  # by first code: the latest, as `arrivals` counts
        self._flips: tuple[int, list[int]] = (0, [])  # how many came before the kept ones, and their slots

    def __len__(self) -> int:
        return len(self.ad_ids)

    def apply(self, entries: Iterable[sid_pb2.CatalogEntry]) -> None:
        """Take over the full state of some ads.

        Args:
            entries: In commit order; a later one of the same ad replaces the earlier.

        Raises:
            ValueError: A SID is none of the codebook; the entries before it are taken over.
        """
        for entry in entries:
            live = entry.state == sid_pb2.AD_STATE_ACTIVE
            slot = self._slots.get(entry.ad_id)
            if slot is None:
                slot = self._append(entry.ad_id, entry.sid.codes, entry.advertiser_id)
            if (slot in self.live_slots) != live:
                self._live[slot] = live
                (self.live_slots.add if live else self.live_slots.discard)(slot)
                self._note_flip(slot)
                if live:
                    self.arrivals += 1
                    self._last_arrivals[self._sids[slot, 0]] = self.arrivals

    @property
    def flips(self) -> int:
        """How often an ad came or went so far; a reader that notes it can ask for the changes after it."""
        before, slots = self._flips
        return before + len(slots)

    def flipped_since(self, flips: int) -> NDArray[np.int64] | None:
        """Return the slots whose ads came or went after a number of flips, each once; None where too many did."""
        before, slots = self._flips
        if flips < before or before + len(slots) - flips > self._most_flips():
            return None
        return np.unique(np.array(slots[flips - before :], np.int64))

    def came_since(self, arrivals: int, first_codes: NDArray[np.int64] | None) -> bool:
        """Tell whether an ad came to life after a number of arrivals.

        Args:
            arrivals: What `arrivals` was.
            first_codes: Look at ads whose SID starts with one of these only, `[n]`; None for any ad.
        """
        if self.arrivals == arrivals or first_codes is None:
            return self.arrivals > arrivals
        return bool((self._last_arrivals[first_codes] > arrivals).any())

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

    def advertiser_of(self, ad_id: str) -> str | None:
        """Return the account that pays for an ad, which never changes; None for an ad that the table does not know."""
        slot = self._slots.get(ad_id)
        return None if slot is None else self._advertiser_ids[slot]

    def view(self) -> TableView:
        """Return the arrays of all slots given so far."""
        size = len(self.ad_ids)
        return TableView(self._sids[:size], self._live[:size])

    def _most_flips(self) -> int:
        return max(FEWEST_FLIPS, len(self.ad_ids) // FLIPS_SHARE)

    def _note_flip(self, slot: int) -> None:
        before, slots = self._flips
        most = self._most_flips()
        if len(slots) >= 2 * most:  # both in one step, for readers in other threads
            before, slots = self._flips = (before + len(slots) - most, slots[-most:])
        slots.append(slot)

    def _append(self, ad_id: str, codes: Sequence[int], advertiser_id: str) -> int:
        sizes = self.level_sizes
        if len(codes) != len(sizes) or not all(code < size for code, size in zip(codes, sizes, strict=True)):
            raise ValueError(f"sid of ad {ad_id}: {list(codes)}: give codes from 0 to below {sizes}")
        slot = len(self.ad_ids)
        if slot == len(self._live):  # new arrays instead of a resize: readers may hold the old ones
            self._sids = np.concatenate([self._sids, np.zeros_like(self._sids)])
            self._live = np.concatenate([self._live, np.zeros_like(self._live)])
        self._sids[slot] = codes
        self.ad_ids.append(ad_id)
        self._advertiser_ids.append(sys.intern(advertiser_id))  # an account has many ads
        self._slots[ad_id] = slot  # last, since from here on other threads find the slot
        return slot
