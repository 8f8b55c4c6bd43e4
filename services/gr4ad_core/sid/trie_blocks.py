"""The memory of the live trie: blocks of children in one pool per level, and what their numbers mean.

A *block* holds the children of one node, by rising code. A *span* says where a block lies: its first place in the pool
and its length. An *entry* of a block is a child: its code, and behind it the child's own span or, at the last level,
the slot of the ad. Spans and entries are one int64 each, so that one aligned store replaces the whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FEWEST_PLACE_BITS: Final = 30
"""Of an entry's 63 bits, those left for the place of a block: a pool of 10⁹ entries."""
SPARE_SHARE: Final = 4
"""A new pool has room for 1 / SPARE_SHARE more entries than it holds."""


class EntryBits:
    """How codes, places and lengths share an int64; for entries and spans of every level."""

    def __init__(self, level_sizes: Sequence[int]) -> None:
        """Share the bits out.

        Raises:
            ValueError: Two neighbouring levels are too large together.
        """
        self.level_sizes = tuple(level_sizes)
        self.count_bits = tuple(size.bit_length() for size in self.level_sizes)
        """Low bits of a span of depth t that hold the block's length; the place is above them."""
        self.code_shifts = tuple(63 - max(1, (size - 1).bit_length()) for size in self.level_sizes)
        """`entry >> code_shifts[t]` is the code, `entry & payloads[t]` the child's span or the slot."""
        self.payloads = tuple((1 << shift) - 1 for shift in self.code_shifts)
        for level, (shift, bits) in enumerate(zip(self.code_shifts, (*self.count_bits[1:], 0), strict=True)):
            if shift - bits < FEWEST_PLACE_BITS:
                remedy = f"give levels that leave {FEWEST_PLACE_BITS} of 63 bits beside one's code and the next's count"
                raise ValueError(f"level_sizes: {self.level_sizes}: from level {level + 1} on: {remedy}")


@dataclass(frozen=True, eq=False)
class TrieView:
    """What a reader holds while it reads: no block that is reachable now is written over while a view is held.

    Single changes still show: each node is read either before or after a change, never in the middle.
    """

    bits: EntryBits
    """How to read entries and spans."""
    root: Ints
    """The span of the root's block, `[1]`."""
    pools: tuple[Ints, ...]
    """Blocks of the children of depth t, for t = 0 … T − 1; a pool ends with room for one more."""


class BlockPools:
    """The pools of one trie, and which places are free. Written by one thread."""

    def __init__(self, bits: EntryBits, codes: Sequence[Ints], counts: Sequence[Ints], slots: Ints) -> None:
        """Lay a trie out in lexicographic order.

        Args:
            bits: How codes, places and lengths share an int64.
            codes: Per level, the code of every node of depth t + 1.
            counts: Per level, the number of children of every node of depth t.
            slots: What the last level's nodes lead to.

        Raises:
            ValueError: More entries than places can be told apart.
        """
        self.bits = bits
        self.live_counts = [len(codes_t) for codes_t in codes]
        """Nodes of depth 1 … T."""
        n_levels = len(codes)
        pools: list[Ints] = [np.empty(0, np.int64)] * n_levels
        self._ends = [0] * n_levels
        self._soft_limits, self._limits = [0] * n_levels, [0] * n_levels
        payload = slots
        for level in reversed(range(n_levels)):
            size = bits.level_sizes[level]
            room = _rooms(counts[level])
            firsts = np.cumsum(room) - room
            end = int(room.sum())
            spare = end // SPARE_SHARE + 2 * size
            limit = end + spare
            if limit >= 1 << (bits.code_shifts[level - 1] - bits.count_bits[level] if level else 62):
                raise ValueError(f"sids: {len(slots)}: more than codes of {bits.level_sizes} leave bits to place")
            # Behind the limit there is room for one block of any length, and for a look-up of as many places.
            pool = np.zeros(limit + room_for(size) + size, np.int64)
            pool[_places(firsts, counts[level])] = codes[level] << bits.code_shifts[level] | payload
            pools[level], self._ends[level] = pool, end
            self._soft_limits[level], self._limits[level] = end + spare // 2, limit
            payload = firsts << bits.count_bits[level] | counts[level]
        self.root: Ints = payload.astype(np.int64)
        self.pools = tuple(pools)
        self.is_half_spent = False
        """Half of a pool's spare room is used up."""
        self.is_full = False
        """A pool has come to its limit: the trie must be laid out anew before its next change."""
        self.entries = tuple(memoryview(pool) for pool in self.pools)  # type: ignore[arg-type]
        """The pools again: single numbers are read faster from these."""
        self._free: list[dict[int, array[int]]] = [{} for _ in self.pools]  # by room, places of blocks to use again
        self.written: list[tuple[int, int, int]] | None = None
        """Level, first place and length of whatever was written, for a copy elsewhere; None where nobody keeps one."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, spare room included."""
        lists = sum(len(places) * places.itemsize for free in self._free for places in free.values())
        return self.root.nbytes + sum(pool.nbytes for pool in self.pools) + lists

    def new_block(self, level: int, entry: int) -> int:
        """Write a block of one child and return its span."""
        first = self._take(level, 1)
        self.pools[level][first] = entry
        self._note(level, first, 1)
        return first << self.bits.count_bits[level] | 1

    def with_entry(self, level: int, first: int, count: int, place: int, entry: int) -> int:
        """Write a copy of a block with one more child before `place`, and return its span."""
        copy = self._take(level, count + 1)
        entries, before = self.entries[level], place - first
        entries[copy : copy + before] = entries[first:place]
        entries[copy + before] = entry
        entries[copy + before + 1 : copy + count + 1] = entries[place : first + count]
        self._note(level, copy, count + 1)
        return copy << self.bits.count_bits[level] | (count + 1)

    def without_entry(self, level: int, first: int, count: int, place: int) -> int:
        """Write a copy of a block without the child at `place`, and return its span; no block where none is left."""
        if count == 1:
            return 0
        copy = self._take(level, count - 1)
        entries, before = self.entries[level], place - first
        entries[copy : copy + before] = entries[first:place]
        entries[copy + before : copy + count - 1] = entries[place + 1 : first + count]
        self._note(level, copy, count - 1)
        return copy << self.bits.count_bits[level] | (count - 1)

    def put(self, level: int, place: int, entry: int) -> None:
        """Replace one entry by one store; level −1 is the root's span."""
        if level < 0:
            self.root[0] = entry
        else:
            self.pools[level][place] = entry
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
    bits = view.bits
    spans = view.root.copy()
    all_codes, all_counts = [], []
    for level, pool in enumerate(view.pools):
        counts = spans & ((1 << bits.count_bits[level]) - 1)
        entries = pool[_places(spans >> bits.count_bits[level], counts)]
        all_codes.append(entries >> bits.code_shifts[level])
        all_counts.append(counts)
        spans = entries & bits.payloads[level]
    return all_codes, all_counts, spans
