"""The live ads at one moment: the trie that constrains generation, and the way back from a SID to its ad."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gr4ad_core.decoding.constraints import TorchTrie
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
    torch_trie: TorchTrie
    """The same, where the model runs."""
    slots_by_place: NDArray[np.int64]
    """Slot of the ad of each live SID, in the trie's order."""

    @property
    def size(self) -> int:
        """Live ads."""
        return self.trie.size

    def slots(self, sids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of the ads with some SIDs.

        Args:
            sids: `[..., T]`.

        Returns:
            Slots, -1 where no ad of the index has the SID, `[...]`.
        """
        if not self.size:
            return np.full(sids.shape[:-1], -1, np.int64)
        places = self.trie.find(sids.reshape(-1, sids.shape[-1])).reshape(sids.shape[:-1])
        return np.where(places >= 0, self.slots_by_place[places], -1)


def build_live_index(
    table: AdTable, view: TableView, cursor: int, level_sizes: tuple[int, ...], device: str
) -> LiveIndex:
    """Index the live ads of a table.

    Args:
        table: The table.
        view: Its arrays, taken together with `cursor`.
        cursor: Position in the catalogue feed up to which the table held every change.
        level_sizes: Codebook size of every level.
        device: Where the model runs.

    Raises:
        ValueError: A SID does not fit `level_sizes`.
    """
    slots = np.flatnonzero(view.live)
    sids = view.sids[slots]
    trie = LiveTrie.build(sids, level_sizes)
    slots_by_place = np.zeros(trie.size, np.int64)
    slots_by_place[trie.find(sids)] = slots
    return LiveIndex(table, cursor, trie, TorchTrie.from_trie(trie, device), slots_by_place)
