"""The trie of live SIDs as tensors, asked for the children of many beams at once (method.md §4).

Shapes: B requests, W beams, M children of the widest node in the question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gr4ad_core.sid.trie import LiveTrie
from gr4ad_core.sid.trie_blocks import EntryBits, TrieView


@dataclass(frozen=True)
class Children:
    """The continuations of W beams, padded to the widest fan-out among them."""

    codes_BWM: Tensor
    """Next codes, int64; any valid code in padding."""
    live_BWM: Tensor
    """True at real children."""
    entries_BWM: Tensor
    """The trie's entries, int64; in padding any of the level."""
    payload: int
    """The bits of an entry that say where the child is."""

    @property
    def nodes_BWM(self) -> Tensor:
        """The children as the next depth's look-up takes them, int64; at depth T the slots of their ads."""
        return self.entries_BWM & self.payload

    def at(self, places_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and nodes of some of a request's continuations, `[B, N]`; a place is one of W · M."""
        entries_BN = self.entries_BWM.flatten(1).gather(1, places_BN)
        return self.codes_BWM.flatten(1).gather(1, places_BN), entries_BN & self.payload


@dataclass(frozen=True)
class TorchTrie:
    """A `LiveTrie` on a device; a search keeps the one it started with. A node is the span of its block of children."""

    bits: EntryBits
    """How to read entries and spans."""
    root_1: Tensor
    """The root, `[1]`."""
    pools: tuple[Tensor, ...]
    """Blocks of the children of depth t, for t = 0 … T − 1."""
    view: TrieView | None
    """Held where memory is shared, so that the trie lets the blocks be that a search may reach."""

    @classmethod
    def from_view(cls, view: TrieView, device: torch.device | str) -> TorchTrie:
        """Show a view on a device: on the CPU in the same memory, elsewhere as a copy."""
        shared = cls(view.bits, torch.from_numpy(view.root), tuple(map(torch.from_numpy, view.pools)), view)
        return shared if torch.device(device).type == "cpu" else shared.copy_to(device)

    def copy_to(self, device: torch.device | str) -> TorchTrie:
        """Copy the arrays to a device, and hold no view."""
        root_1, *pools = (tensor.to(device, copy=True) for tensor in (self.root_1, *self.pools))
        return TorchTrie(self.bits, root_1, tuple(pools), None)

    @property
    def n_levels(self) -> int:
        """SID levels T."""
        return len(self.pools)

    def children(self, depth: int, nodes_BW: Tensor) -> Children:
        """Return the children of nodes of depth 0 … T − 1, as `root_1` or an earlier answer gave them."""
        bits, pool = self.bits, self.pools[depth]
        count_BW = nodes_BW & ((1 << bits.count_bits[depth]) - 1)
        first_BW = nodes_BW >> bits.count_bits[depth]
        fanout = max(int(count_BW.max()), 1)
        # One row a node, from its block's first place on: a pool ends with room for the longest.
        entries_RM = pool.unfold(0, fanout, 1).index_select(0, first_BW.flatten())
        live_BWM = torch.arange(fanout, device=pool.device) < count_BW.unsqueeze(-1)
        entries_BWM = entries_RM.view(live_BWM.shape)
        return Children(entries_BWM >> bits.code_shifts[depth], live_BWM, entries_BWM, bits.payloads[depth])


class DeviceTrie:
    """A copy of a `LiveTrie` on a device, to which only what was written goes; used by the thread that changes it."""

    def __init__(self, trie: LiveTrie, device: torch.device | str) -> None:
        """Copy a trie; what is written to it from now on is for this copy alone to take."""
        trie.keep_writes()
        self._trie = trie
        self._device = torch.device(device)
        self._copy_all()

    def latest(self) -> TorchTrie:
        """Bring the copy to the trie's state and return it; on a GPU that waits its turn behind searches under way."""
        view, written = self._trie.view, self._trie.take_writes()
        if view.pools is not self._copied:  # laid out anew
            self._copy_all()
            return self._copy
        for level, pool in enumerate(self._copy.pools):
            ranges = [np.arange(first, first + count) for of, first, count in written if of == level]
            if ranges:
                places = np.unique(np.concatenate(ranges))
                entries = torch.from_numpy(view.pools[level][places]).to(self._device)
                pool.index_copy_(0, torch.from_numpy(places).to(self._device), entries)
        self._copy.root_1.copy_(torch.from_numpy(view.root))
        return self._copy

    def _copy_all(self) -> None:
        view = self._trie.view
        self._copied = view.pools
        self._copy = TorchTrie.from_view(view, "cpu").copy_to(self._device)
