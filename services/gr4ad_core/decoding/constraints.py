"""The trie of live SIDs as tensors, asked for the children of many beams at once (method.md §4).

Shapes: B requests, W beams, M children of the widest node in the question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gr4ad_core.sid.trie import LiveTrie
from gr4ad_core.sid.trie_blocks import COUNT_BITS, COUNT_MASK, TrieView


@dataclass(frozen=True)
class Children:
    """The continuations of W beams, padded to the widest fan-out among them."""

    codes_BWM: Tensor
    """Next codes, int32; any valid code in padding."""
    live_BWM: Tensor
    """True at real children."""
    first_BW: Tensor
    """Where each beam's children begin, int64."""
    links: Tensor
    """Where the children lead, of all nodes of the depth."""

    def at(self, parents_BN: Tensor, ranks_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and nodes of some children, int64 `[B, N]` each, by their beams and their ranks among M.

        A node is as the next depth's look-up takes it; at depth T it is the slot of the ad. In padding it is any.
        """
        codes_BN = self.codes_BWM.flatten(1).gather(1, parents_BN * self.codes_BWM.shape[-1] + ranks_BN)
        places_BN = self.first_BW.gather(1, parents_BN) + ranks_BN
        return codes_BN.long(), self.links.index_select(0, places_BN.flatten()).view(places_BN.shape)


@dataclass(frozen=True)
class TorchTrie:
    """A `LiveTrie` on a device; a search keeps the one it started with. A node is the span of its block of children."""

    root_1: Tensor
    """The root, `[1]`."""
    codes: tuple[Tensor, ...]
    """Codes of the children of depth t, for t = 0 … T − 1, int32."""
    links: tuple[Tensor, ...]
    """Where they lead, int64."""
    view: TrieView | None
    """Held where memory is shared, so that the trie lets the blocks be that a search may reach."""

    @classmethod
    def from_view(cls, view: TrieView, device: torch.device | str) -> TorchTrie:
        """Show a view on a device: on the CPU in the same memory, elsewhere as a copy."""
        codes, links = (tuple(map(torch.from_numpy, arrays)) for arrays in (view.codes, view.links))
        shared = cls(torch.from_numpy(view.root), codes, links, view)
        return shared if torch.device(device).type == "cpu" else shared.copy_to(device)

    def copy_to(self, device: torch.device | str) -> TorchTrie:
        """Copy the arrays to a device, and hold no view."""
        codes, links = (tuple(each.to(device, copy=True) for each in arrays) for arrays in (self.codes, self.links))
        return TorchTrie(self.root_1.to(device, copy=True), codes, links, None)

    @property
    def n_levels(self) -> int:
        """SID levels T."""
        return len(self.codes)

    def children(self, depth: int, nodes_BW: Tensor) -> Children:
        """Return the children of nodes of depth 0 … T − 1, as `root_1` or an earlier answer gave them."""
        count_BW = nodes_BW & COUNT_MASK
        first_BW = nodes_BW >> COUNT_BITS
        fanout = max(int(count_BW.max()), 1)
        live_BWM = torch.arange(fanout, device=nodes_BW.device) < count_BW.unsqueeze(-1)
        # One row a node, from its block's first place on: the array ends with room for the longest.
        codes_RM = self.codes[depth].unfold(0, fanout, 1).index_select(0, first_BW.flatten())
        return Children(codes_RM.view(live_BWM.shape), live_BWM, first_BW, self.links[depth])


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
        if view.links is not self._copied:  # laid out anew
            self._copy_all()
            return self._copy
        for level in range(self._copy.n_levels):
            ranges = [np.arange(first, first + count) for of, first, count in written if of == level]
            if ranges:
                places = np.unique(np.concatenate(ranges))
                on_device = torch.from_numpy(places).to(self._device)
                for copies, arrays in ((self._copy.codes, view.codes), (self._copy.links, view.links)):
                    copies[level].index_copy_(0, on_device, torch.from_numpy(arrays[level][places]).to(self._device))
        self._copy.root_1.copy_(torch.from_numpy(view.root))
        return self._copy

    def _copy_all(self) -> None:
        view = self._trie.view
        self._copied = view.links
        self._copy = TorchTrie.from_view(view, "cpu").copy_to(self._device)
