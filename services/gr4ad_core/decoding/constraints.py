"""The trie of live SIDs on the model's device, asked for the children of many beams at once (method.md §4).

Shapes: B requests, W beams, M children of the widest node in the question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gr4ad_core.sid.trie import LiveTrie


@dataclass(frozen=True)
class Children:
    """The continuations of W beams, padded to the widest fan-out among them."""

    codes_BWM: Tensor
    """Next codes, int64; any valid code in padding."""
    nodes_BWM: Tensor
    """The children's own node numbers at the next depth, int64."""
    live_BWM: Tensor
    """True at real children."""


@dataclass(frozen=True)
class TorchTrie:
    """`LiveTrie` as tensors; immutable like it, so a search keeps the one it started with."""

    child_offsets: tuple[Tensor, ...]
    child_codes: tuple[Tensor, ...]

    @classmethod
    def from_trie(cls, trie: LiveTrie, device: torch.device | str) -> TorchTrie:
        """Copy the arrays to `device`. An empty level gets one unreachable entry, so that look-ups need no branch."""
        offsets = [o if len(o) > 1 else np.zeros(2, np.int64) for o in trie.child_offsets]
        codes = [c if len(c) else np.zeros(1, np.int64) for c in trie.child_codes]
        return cls(
            tuple(torch.from_numpy(o).to(device) for o in offsets),
            tuple(torch.from_numpy(c).to(device) for c in codes),
        )

    @property
    def n_levels(self) -> int:
        """SID levels T."""
        return len(self.child_codes)

    def children(self, depth: int, nodes_BW: Tensor) -> Children:
        """Return the children of nodes of depth 0 … T − 1 (0: the root is node 0)."""
        offsets, codes = self.child_offsets[depth], self.child_codes[depth]
        first_BW = offsets[nodes_BW]
        count_BW = offsets[nodes_BW + 1] - first_BW
        place_M = torch.arange(max(int(count_BW.max()), 1), device=codes.device)
        nodes_BWM = (first_BW[..., None] + place_M).clamp_(max=len(codes) - 1)
        return Children(codes[nodes_BWM], nodes_BWM, place_M < count_BW[..., None])
