"""The memory of the live trie: blocks of children in flat arrays, one pair per level.

A *block* holds the children of one node, by rising code: their codes in one array and, at the same places of another,
their *links*. A link leads on: to the child's own block, or at the last level to the slot of the ad. A *span* is a link
to a block, its first place and its length in one int64, so that one aligned store replaces the whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

COUNT_BITS: Final = 24
"""Low bits of a span, which hold the block's length; its first place is above them."""
COUNT_MASK: Final = (1 << COUNT_BITS) - 1
SPARE_SHARE: Final = 4
"""A new level has room for 1 / SPARE_SHARE more children than it holds."""


@dataclass(frozen=True, eq=False)
class TrieView:
    """What a reader holds while it reads: no block that is reachable now is written over while a view is held.

    Single changes still show: each node is read either before or after a change, never in the middle.
    """

    root: Ints
    """The span of the root's block, `[1]`."""
    codes: tuple[NDArray[np.int32], ...]
    """Codes of the children of depth t, for t = 0 … T − 1; an array ends with room for one more block of any length."""
    links: tuple[Ints, ...]
    """Where each child leads: its span, or at the last level its slot."""


class BlockPools:
    """The blocks of one trie, and which places are free. Written by one thread."""

    def __init__(self, level_sizes: Sequence[int], codes: Sequence[Ints], counts: Sequence[Ints], slots: Ints) -> None:
        """Lay a trie out in lexicographic order.

        Args:
            level_sizes: Codebook size of every level.
            codes: Per level, the code of every node of depth t + 1.
            counts: Per level, the number of children of every node of depth t.
            slots: What the last level's nodes lead to.
        """
        self.live_counts = [len(codes_t) for codes_t in codes]
        """Nodes of depth 1 … T."""
        self._ends: list[int] = []
        self._soft_limits: list[int] = []
        self._limits: list[int] = []
        all_codes, all_links = [], []
        onward = slots
        for size, codes_t, counts_t in zip(level_sizes[::-1], codes[::-1], counts[::-1], strict=True):
            rooms = _rooms(counts_t)
            firsts = np.cumsum(rooms) - rooms
            end = int(rooms.sum())
            spare = end // SPARE_SHARE + 2 * size
            # Behind the limit there is room for one block of any length, and for a look-up of as many places.
            length = end + spare + room_for(size) + size
            places = _places(firsts, counts_t)
            level_codes, level_links = np.zeros(length, np.int32), np.zeros(length, np.int64)
            level_codes[places], level_links[places] = codes_t, onward
            all_codes.append(level_codes)
            all_links.append(level_links)
            self._ends.append(end)
            self._soft_limits.append(end + spare // 2)
            self._limits.append(end + spare)
            onward = firsts << COUNT_BITS | counts_t
        for limits in (self._ends, self._soft_limits, self._limits):
            limits.reverse()
        self.view = TrieView(onward.astype(np.int64), tuple(all_codes[::-1]), tuple(all_links[::-1]))
        # Single numbers are read faster from these.
        self.codes = tuple(memoryview(level_codes) for level_codes in self.view.codes)  # type: ignore[arg-type]
        self.links = tuple(memoryview(level_links) for level_links in self.view.links)  # type: ignore[arg-type]
        self.is_half_spent = False
        """Half of a level's spare room is used up."""
        self.is_full = False
        """A level has come to its limit: the trie must be laid out anew before its next change."""
        self._free: list[dict[int, array[int]]] = [{} for _ in self.codes]  # by room, places of blocks to use again
        self.written: list[tuple[int, int, int]] | None = None
        """Level, first place and length of whatever was written, for a copy elsewhere; None where nobody keeps one."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, spare room included."""
        lists = sum(len(places) * places.itemsize for free in self._free for places in free.values())
        arrays = sum(codes.nbytes + links.nbytes for codes, links in zip(self.view.codes, self.view.links, strict=True))
        return self.view.root.nbytes + arrays + lists

    def new_block(self, level: int, code: int, link: int) -> int:
        """Write a block of one child and return its span."""
        first = self._take(level, 1)
        self.codes[level][first] = code
        self.links[level][first] = link
        self._note(level, first, 1)
        return first << COUNT_BITS | 1

    def with_child(self, level: int, first: int, count: int, place: int, code: int, link: int) -> int:
        """Write a copy of a block with one more child before `place`, and return its span."""
        copy = self._take(level, count + 1)
        middle, end = copy + place - first, copy + count + 1
        for values, value in ((self.codes[level], code), (self.links[level], link)):
            values[copy:middle] = values[first:place]
            values[middle] = value
            values[middle + 1 : end] = values[place : first + count]
        self._note(level, copy, count + 1)
        return copy << COUNT_BITS | (count + 1)

    def without_child(self, level: int, first: int, count: int, place: int) -> int:
        """Write a copy of a block without the child at `place`, and return its span; no block where none is left."""
        if count == 1:
            return 0
        copy = self._take(level, count - 1)
        middle, end = copy + place - first, copy + count - 1
        for values in (self.codes[level], self.links[level]):
            values[copy:middle] = values[first:place]
            values[middle:end] = values[place + 1 : first + count]
        self._note(level, copy, count - 1)
        return copy << COUNT_BITS | (count - 1)

    def put(self, level: int, place: int, link: int) -> None:
        """Let a child lead elsewhere, by one store; level −1 is the root's own span."""
        if level < 0:
            self.view.root[0] = link
        else:
            self.view.links[level][place] = link
            self._note(level, place, 1)

    def free(self, level: int, first: int, count: int) -> None:
        """Let a block be written over that no reader can reach."""
        self._free[level].setdefault(room_for(count), array("q")).append(first)

    def _take(self, level: int, count: int) -> int:
        room = room_for(count)
        free = self._free[level].get(room)
        if free:
            return free.pop()
        first = self._ends[level]
        self._ends[level] += room
        self.is_half_spent |= self._ends[level] > self._soft_limits[level]
        self.is_full |= self._ends[level] > self._limits[level]
        return first

    def _note(self, level: int, first: int, count: int) -> None:
        if self.written is not None:
            self.written.append((level, first, count))


def room_for(count: int) -> int:
    """Return the places that a block of `count` children takes: a power of two, or one and a half of it.

    Blocks of nearly the same length take turns in the same places, and a growing node leaves few sizes behind.
    """
    power = 1 << max(count - 1, 0).bit_length()
    return power - (power >> 2) if count <= power - (power >> 2) else power


def _rooms(counts: Ints) -> Ints:
    rooms = np.array([room_for(count) for count in range(int(counts.max(initial=0)) + 1)])
    rooms[0] = 0
    of_counts: Ints = rooms[counts]
    return of_counts


def _places(firsts: Ints, counts: Ints) -> Ints:
    """Return the places `first, first + 1, …` of all blocks, one block after the other."""
    ends = np.cumsum(counts)
    places: Ints = np.repeat(firsts - (ends - counts), counts) + np.arange(int(counts.sum()))
    return places


def walk(view: TrieView) -> tuple[list[Ints], list[Ints], Ints]:
    """Read a whole trie in lexicographic order; returns what `BlockPools` is made of: codes, counts and slots."""
    links = view.root.copy()
    all_codes, all_counts = [], []
    for level_codes, level_links in zip(view.codes, view.links, strict=True):
        counts = links & COUNT_MASK
        places = _places(links >> COUNT_BITS, counts)
        all_codes.append(level_codes[places].astype(np.int64))
        all_counts.append(counts)
        links = level_links[places]
    return all_codes, all_counts, links
