"""The live ads at one moment: the trie that constrains generation, and the way back from a SID to its ad."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gr4ad_core.sid.trie import LiveTrie
from numpy.typing import NDArray

from ad_generator.ad_table import AdTable, TableView


@dataclass(frozen=True)
class LiveIndex:
    """An immutable index of the live ads of a table; a change makes a new one."""

    table: AdTable
    """Where the ads are; it may know of later changes than the index."""
    cursor: int
    """Position in the catalogue feed up to which the index holds every change."""
    trie: LiveTrie
    """The live SIDs."""
    slots_by_place: NDArray[np.int64]
    """Slot of the ad of each live SID, in the trie's order."""

    @property
    def size(self) -> int:
        """Live ads."""
        return self.trie.size


def build_live_index(table: AdTable, view: TableView, cursor: int, level_sizes: tuple[int, ...]) -> LiveIndex:
    """Index the live ads of a table.

    Args:
        table: The table.
        view: Its arrays, taken together with `cursor`.
        cursor: Position in the catalogue feed up to which the table held every change.
        level_sizes: Codebook size of every level.

    Raises:
        ValueError: A SID does not fit `level_sizes`.
    """
    slots = np.flatnonzero(view.live)
    sids = view.sids[slots]
    trie = LiveTrie.build(sids, level_sizes)
    slots_by_place = np.zeros(trie.size, np.int64)
    slots_by_place[trie.find(sids)] = slots
    return LiveIndex(table, cursor, trie, slots_by_place)
