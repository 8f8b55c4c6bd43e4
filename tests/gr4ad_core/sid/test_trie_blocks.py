"""The trie's memory: what it holds is what it was made of, and how much of it a block takes."""

from __future__ import annotations

import numpy as np
from gr4ad_core.sid.trie_blocks import BlockPools, room_for, walk
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.lists(st.sets(st.integers(0, 6), min_size=1), min_size=1, max_size=5), max_size=5))
def test_a_layout_reads_as_what_it_was_made_of(tree: list[list[set[int]]]) -> None:
    leaves = [sorted(codes) for node in tree for codes in node]
    codes = [
        np.arange(len(tree)),
        np.concatenate([np.zeros(0, np.int64), *(np.arange(len(node)) for node in tree)]),
        np.array([code for block in leaves for code in block], np.int64),
    ]
    counts = [
        np.array([len(tree)]),
        np.array([len(node) for node in tree], np.int64),
        np.array([len(block) for block in leaves], np.int64),
    ]
    slots = np.arange(len(codes[2]))[::-1] * 7

    blocks = BlockPools((5, 5, 7), codes, counts, slots)

    assert blocks.live_counts == [len(of_level) for of_level in codes]
    found_codes, found_counts, found_slots = walk(blocks.view)
    for found, given_ in zip((*found_codes, *found_counts, found_slots), (*codes, *counts, slots), strict=True):
        np.testing.assert_array_equal(found, given_)


def test_a_block_takes_a_power_of_two_or_one_and_a_half_of_it() -> None:
    assert [room_for(count) for count in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert all(count <= room_for(count) < 1.5 * count for count in range(1, 5000))
