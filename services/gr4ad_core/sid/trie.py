"""The index of live SIDs: a trie in flat arrays that decoding walks without chasing pointers (method.md §4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LiveTrie:
    """An immutable set of SIDs as a trie in compressed sparse rows, one pair of arrays per level.

    A node at depth t is a distinct prefix (s_1 … s_t); nodes of a depth are numbered in lexicographic order, and the
    root is node 0 of depth 0. The children of node `v` at depth t are the nodes `child_offsets[t][v]` up to
    `child_offsets[t][v + 1]` of depth t + 1, and `child_codes[t]` at the same places holds their codes s_(t+1). A
    change of the catalogue builds a new trie, so that readers never wait.
    """

    level_sizes: tuple[int, ...]
    """Codebook size V_t of every level."""
    child_offsets: tuple[Ints, ...]
    """T arrays: `[nodes at depth t + 1]`, for depths t = 0 … T − 1."""
    child_codes: tuple[Ints, ...]
    """T arrays: `[nodes at depth t + 1 in all]`, the code of each; rising inside one parent."""

    @classmethod
    def build(cls, sids: Ints, level_sizes: tuple[int, ...]) -> LiveTrie:
        """Index a set of SIDs; duplicates count once, order does not matter.

        Args:
            sids: Codes `[N, T]`, integers; N = 0 gives the empty trie.
            level_sizes: Codebook size of each of the T levels.

        Raises:
            ValueError: The shape is not `[N, T]`, or a code is outside its level.
        """
        sids = np.asarray(sids)
        if sids.ndim != 2 or sids.shape[1] != len(level_sizes):
            raise ValueError(f"sids: shape {sids.shape}: give [N, {len(level_sizes)}], one code per level")
        if not np.issubdtype(sids.dtype, np.integer):
            raise ValueError(f"sids: type {sids.dtype}: give integer codes")
        wrong = np.flatnonzero(((sids < 0) | (sids >= np.array(level_sizes))).any(axis=1))
        if len(wrong):
            raise ValueError(f"sids[{wrong[0]}]: {sids[wrong[0]].tolist()}: give codes from 0 to below {level_sizes}")

        rows = _sorted_rows(sids.astype(np.int64, copy=False), level_sizes)
        # A sorted row opens a new node at every depth from its first code that differs from the row before.
        is_new = np.ones(rows.shape, dtype=bool)
        np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1, out=is_new[1:])
        offsets, codes = [], []
        parents = np.zeros(1, np.int64)  # the first row of each node, starting with the root
        for level in range(len(level_sizes)):
            nodes = np.flatnonzero(is_new[:, level])
            offsets.append(np.append(np.searchsorted(nodes, parents), len(nodes)))
            codes.append(rows[nodes, level])
            parents = nodes
        return cls(tuple(level_sizes), tuple(offsets), tuple(codes))

    @property
    def n_levels(self) -> int:
        """SID levels T."""
        return len(self.level_sizes)

    @property
    def size(self) -> int:
        """Live SIDs."""
        return len(self.child_codes[-1])

    @property
    def live_counts(self) -> tuple[int, ...]:
        """Distinct live prefixes of length 1 … T: what a beam can hold at most at each level."""
        return tuple(len(codes) for codes in self.child_codes)

    @property
    def widest_fanouts(self) -> tuple[int, ...]:
        """Most children that any node of depth 0 … T − 1 has; 0 in the empty trie."""
        return tuple(int(np.diff(offsets).max(initial=0)) for offsets in self.child_offsets)

    def children(self, depth: int, node: int) -> Ints:
        """Return the codes that may follow a node, rising."""
        first, end = self.child_offsets[depth][node : node + 2]
        return self.child_codes[depth][first:end]

    def find(self, sids: Ints) -> Ints:
        """Return the place of each SID `[M, T]` in lexicographic order, `[M]`; −1 where it is not live."""
        nodes = np.zeros(len(sids), np.int64)
        live = np.ones(len(sids), dtype=bool)
        for level, (size, keys) in enumerate(zip(self.level_sizes, self._edge_keys, strict=True)):
            codes = np.asarray(sids)[:, level].astype(np.int64, copy=False)
            live &= (codes >= 0) & (codes < size)
            wanted = nodes * size + codes
            nodes = np.searchsorted(keys, wanted)
            if not len(keys):
                return np.full(len(sids), -1)
            nodes = np.minimum(nodes, len(keys) - 1)
            live &= keys[nodes] == wanted
        return np.where(live, nodes, -1)

    def contains(self, sids: Ints) -> NDArray[np.bool_]:
        """Tell which of the SIDs `[M, T]` are live, `[M]`; a code outside its level is not."""
        return self.find(sids) >= 0

    def sids(self) -> Ints:
        """Return the live SIDs in lexicographic order, `[size, T]`."""
        columns = []
        nodes = np.arange(self.size)
        for level in reversed(range(self.n_levels)):
            columns.append(self.child_codes[level][nodes])
            nodes = np.searchsorted(self.child_offsets[level], nodes, side="right") - 1
        return np.stack(columns[::-1], axis=1)

    @cached_property
    def _edge_keys(self) -> tuple[Ints, ...]:
        """Per level, parent and code of every node as one rising number (below nodes × V_t, so it fits)."""
        return tuple(
            np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * size + codes
            for size, offsets, codes in zip(self.level_sizes, self.child_offsets, self.child_codes, strict=True)
        )


def _sorted_rows(sids: Ints, level_sizes: tuple[int, ...]) -> Ints:
    """Sort SIDs lexicographically: as one packed number each, five times as fast, wherever they fit in 63 bits."""
    bits = np.array([(size - 1).bit_length() for size in level_sizes])
    if bits.sum() > 63:
        rows: Ints = sids[np.lexsort(sids.T[::-1])]
        return rows
    shifts = bits.sum() - np.cumsum(bits)
    packed: Ints = np.sort((sids << shifts).sum(axis=1))
    unpacked: Ints = packed[:, None] >> shifts & ((1 << bits) - 1)
    return unpacked
