"""The index of live SIDs: a trie in flat arrays that changes by single ads while it is read (method.md §4)."""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.sid.trie_blocks import COUNT_BITS, COUNT_MASK, BlockPools, Ints, TrieView, walk


class LiveTrie:
    """The live SIDs and the slots of their ads; changed by one thread, read by any, and readers never wait.

    A change writes the block of children that it alters anew, beside the old one, and then makes it the node's by one
    store, so a reader finds each node before or after a change. A reader takes `view` and keeps it while it reads: the
    blocks that changes leave behind are used again only when no view from before is held. Readers in another thread
    than the writer rely on a processor that shows stores in their order (x86-64 does); in one thread nothing is asked.

    When the spare room of a level runs out, the trie is laid out anew in a thread of its own, while it is read and
    changed; the changes that come meanwhile are made again in the new arrays.
    """

    def __init__(self, level_sizes: tuple[int, ...], blocks: BlockPools) -> None:
        """Take a trie over that is laid out; see `build`."""
        self.level_sizes = level_sizes
        """Codebook size V_t of every level."""
        self._blocks = blocks
        self.view = replace(blocks.view)  # held by nobody else
        """What a reader takes, once per search, and keeps until its end."""
        self._left: deque[tuple[weakref.ref[TrieView], list[tuple[int, int, int]]]] = deque()
        self._compaction: _Compaction | None = None
        self._keeps_writes = False

    @classmethod
    def build(cls, sids: NDArray[np.integer[Any]], level_sizes: tuple[int, ...], slots: Ints | None = None) -> LiveTrie:
        """Index a set of SIDs; order does not matter, and of a SID that is given twice the last slot stays.

        Args:
            sids: Codes `[N, T]`, integers; N = 0 gives the empty trie.
            level_sizes: Codebook size of each of the T levels.
            slots: Of the SIDs' ads, `[N]`; by default their rows.

        Raises:
            ValueError: A shape is wrong, a code is outside its level, or a level is too large.
        """
        sids = np.asarray(sids)
        if sids.ndim != 2 or sids.shape[1] != len(level_sizes):
            raise ValueError(f"sids: shape {sids.shape}: give [N, {len(level_sizes)}], one code per level")
        if not np.issubdtype(sids.dtype, np.integer):
            raise ValueError(f"sids: type {sids.dtype}: give integer codes")
        wrong = np.flatnonzero(((sids < 0) | (sids >= np.array(level_sizes))).any(axis=1))
        if len(wrong):
            raise ValueError(f"sids[{wrong[0]}]: {sids[wrong[0]].tolist()}: give codes from 0 to below {level_sizes}")
        if max(level_sizes) > COUNT_MASK:
            raise ValueError(f"level_sizes: {level_sizes}: give levels of at most {COUNT_MASK} codes")
        slots = np.arange(len(sids)) if slots is None else np.asarray(slots, np.int64)
        if slots.shape != (len(sids),):
            raise ValueError(f"slots: shape {slots.shape}: give [{len(sids)}], one per SID")

        order = _lexicographic_order(sids, level_sizes)
        rows, slots = sids[order], slots[order]
        # A sorted row opens a new node at every depth from its first code that differs from the row before.
        is_new = np.ones(rows.shape, dtype=bool)
        np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1, out=is_new[1:])
        codes, counts = [], []
        parents = np.zeros(1, np.int64)  # the first row of each node, starting with the root
        for level in range(len(level_sizes)):
            nodes = np.flatnonzero(is_new[:, level])
            counts.append(np.diff(np.searchsorted(nodes, parents), append=len(nodes)))
            codes.append(rows[nodes, level].astype(np.int64))
            parents = nodes
        last_rows = np.append(parents[1:], len(rows)) - 1 if len(rows) else parents
        return cls(tuple(level_sizes), BlockPools(level_sizes, codes, counts, slots[last_rows]))

    @property
    def size(self) -> int:
        """Live SIDs."""
        return self._blocks.live_counts[-1]

    @property
    def live_counts(self) -> tuple[int, ...]:
        """Distinct live prefixes of length 1 … T: what a beam can hold at most at each level."""
        return tuple(self._blocks.live_counts)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, spare room included."""
        return self._blocks.nbytes

    def insert(self, sid: Sequence[int], slot: int) -> bool:
        """Add an ad; visible to the next look-up. A SID that is live already only takes the slot.

        Args:
            sid: T codes.
            slot: Of the ad, an int64.

        Returns:
            Whether the SID was not live before.

        Raises:
            ValueError: It is no SID of the trie's levels; nothing has changed.
        """
        self._check(sid)
        self._make_room()
        blocks, last = self._blocks, len(sid) - 1
        spans, places, depth = self._descend(sid)
        if depth > last:
            blocks.put(last, places[last], slot)
        else:
            link = slot
            for level in range(last, depth, -1):
                link = blocks.new_block(level, sid[level], link)
            span = blocks.with_child(depth, *spans[depth], places[depth], sid[depth], link)
            self._point(depth, places, span)
            for level in range(depth, last + 1):
                blocks.live_counts[level] += 1
            self._leave([(depth, *spans[depth])])
        if self._compaction is not None:
            self._compaction.meanwhile.append((sid, slot))
        return depth <= last

    def remove(self, sid: Sequence[int]) -> bool:
        """Take an ad out; no look-up that begins after this finds it. Does nothing where it is not live.

        Args:
            sid: T codes.

        Returns:
            Whether the SID was live before.

        Raises:
            ValueError: It is no SID of the trie's levels; nothing has changed.
        """
        self._check(sid)
        self._make_room()
        blocks = self._blocks
        spans, places, depth = self._descend(sid)
        if self._compaction is not None:
            self._compaction.meanwhile.append((sid, None))
        if depth < len(sid):
            return False
        level = len(sid) - 1
        while level and spans[level][1] == 1:  # its only child goes, so the node goes, too
            level -= 1
        self._point(level, places, blocks.without_child(level, *spans[level], places[level]))
        for gone in range(level, len(sid)):
            blocks.live_counts[gone] -= 1
        self._leave([(gone, *spans[gone]) for gone in range(level, len(sid))])
        return True

    def keep_writes(self) -> None:
        """From now on keep what `take_writes` gives; for a copy of the arrays on another device."""
        self._keeps_writes = True
        self._blocks.written = []

    def take_writes(self) -> list[tuple[int, int, int]]:
        """Return level, first place and length of what was written to the arrays of `view` since the last call.

        Whoever holds a copy of other arrays than those of `view` needs all of them instead.
        """
        written, self._blocks.written = self._blocks.written or [], []
        return written

    def _check(self, sid: Sequence[int]) -> None:
        sizes = self.level_sizes
        if len(sid) != len(sizes) or not all(0 <= code < size for code, size in zip(sid, sizes, strict=True)):
            raise ValueError(f"sid: {list(sid)}: give codes from 0 to below {sizes}")

    def _descend(self, sid: Sequence[int]) -> tuple[list[tuple[int, int]], list[int], int]:
        """Follow a SID as far as it is live: blocks (first place, length), the codes' places there, codes found.

        Where a code is missing, the last place is the one before which it belongs.
        """
        blocks = self._blocks
        spans, places = [], []
        link = int(blocks.view.root[0])
        for level, code in enumerate(sid):
            first, count = link >> COUNT_BITS, link & COUNT_MASK
            codes = blocks.codes[level]
            place = bisect_left(codes, code, first, first + count)
            spans.append((first, count))
            places.append(place)
            if place == first + count or codes[place] != code:
                return spans, places, level
            link = blocks.links[level][place]
        return spans, places, len(sid)

    def _point(self, depth: int, places: list[int], span: int) -> None:
        """Make a block that of a node of `depth` by one store: here a change takes effect, as a whole."""
        self._blocks.put(depth - 1, places[depth - 1], span)

    def _leave(self, left: list[tuple[int, int, int]]) -> None:
        """Free blocks once nobody holds a view from before this moment."""
        before, self.view = self.view, replace(self.view)
        self._left.append((weakref.ref(before), left))
        del before
        while self._left and self._left[0][0]() is None:
            for level, first, count in self._left.popleft()[1]:
                if count:
                    self._blocks.free(level, first, count)

    def _make_room(self) -> None:
        """Lay the trie out anew where its room runs out: begin early, and wait only where there is none left."""
        if self._compaction is None and self._blocks.is_half_spent:
            self._compaction = _Compaction(self.level_sizes, self.view)
        if self._compaction is not None and (self._blocks.is_full or not self._compaction.thread.is_alive()):
            compaction, self._compaction = self._compaction, None
            anew = LiveTrie(self.level_sizes, compaction.result())
            for sid, slot in compaction.meanwhile:
                if slot is None:
                    anew.remove(sid)
                else:
                    anew.insert(sid, slot)
            self._blocks, self._left, self._compaction = anew._blocks, anew._left, anew._compaction
            if self._keeps_writes:
                self._blocks.written = []
            self.view = anew.view


class _Compaction:
    """A new layout of a trie that goes on changing: whatever changes meanwhile has to be made again."""

    def __init__(self, level_sizes: tuple[int, ...], view: TrieView) -> None:
        self.meanwhile: list[tuple[Sequence[int], int | None]] = []
        self._level_sizes, self._view = level_sizes, view
        self._blocks: BlockPools | None = None
        self.thread = threading.Thread(target=self._lay_out, name="trie compaction", daemon=True)
        self.thread.start()

    def _lay_out(self) -> None:
        self._blocks = BlockPools(self._level_sizes, *walk(self._view))

    def result(self) -> BlockPools:
        self.thread.join()
        if self._blocks is None:
            raise RuntimeError("the trie's compaction failed in its thread")
        return self._blocks


def _lexicographic_order(sids: NDArray[np.integer[Any]], level_sizes: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the order of the rows; by one packed number each, several times as fast, wherever they fit in 63 bits."""
    bits = np.array([(size - 1).bit_length() for size in level_sizes])
    if bits.sum() > 63:
        return np.lexsort(sids.T[::-1])
    shifts = bits.sum() - np.cumsum(bits)
    packed = np.zeros(len(sids), np.int64)
    for column, shift in zip(sids.T, shifts, strict=True):
        packed |= column.astype(np.int64) << shift
    return np.argsort(packed, kind="stable")
