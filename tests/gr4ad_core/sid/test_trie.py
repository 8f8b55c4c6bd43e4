import numpy as np
import pytest
from gr4ad_core.sid.trie import LiveTrie
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles.brute_force_trie import BruteForceTrie

HUGE = (2**31, 2**31, 2**31)  # does not fit in 63 bits: sorted column by column


@st.composite
def sids_and_sizes(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    sizes = draw(st.sampled_from([(3, 4, 2), (5,), (2, 2, 2, 2), (1, 6), HUGE]))
    rows = draw(st.integers(0, 30))
    # A huge codebook would never repeat a prefix: draw its codes from a few, far apart.
    columns = [
        draw(hnp.arrays(np.int64, rows, elements=st.sampled_from(sorted({0, size // 3, size // 2, size - 1}))))
        for size in sizes
    ]
    return np.stack(columns, axis=1).reshape(rows, len(sizes)), sizes


@given(sids_and_sizes())
def test_holds_exactly_the_sids_that_brute_force_holds(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    sids, sizes = case
    trie, oracle = LiveTrie.build(sids, sizes), BruteForceTrie(sids)

    assert trie.size == len(oracle.sids)
    assert trie.live_counts == tuple(len(oracle.prefixes(t + 1)) for t in range(len(sizes)))
    assert [tuple(sid) for sid in trie.sids().tolist()] == oracle.prefixes(len(sizes))
    for depth in range(len(sizes)):
        prefixes = oracle.prefixes(depth) if oracle.sids else []
        for node, prefix in enumerate(prefixes):
            assert trie.children(depth, node).tolist() == oracle.children(prefix)
        most = max((len(oracle.children(prefix)) for prefix in prefixes), default=0)
        assert trie.widest_fanouts[depth] == most


@given(sids_and_sizes(), st.data())
def test_finds_a_sid_at_its_place_and_nothing_else(
    case: tuple[np.ndarray, tuple[int, ...]], data: st.DataObject
) -> None:
    sids, sizes = case
    trie, oracle = LiveTrie.build(sids, sizes), BruteForceTrie(sids)
    codes = st.tuples(*(st.sampled_from([-1, 0, 1, size // 2, size - 1, size]) for size in sizes))
    asked = data.draw(st.lists(codes, min_size=1, max_size=20)) + sorted(oracle.sids)

    places = trie.find(np.array(asked))

    ordered = oracle.prefixes(len(sizes))
    assert places.tolist() == [ordered.index(sid) if sid in oracle.sids else -1 for sid in asked]
    assert trie.contains(np.array(asked)).tolist() == [sid in oracle.sids for sid in asked]


@given(sids_and_sizes())
def test_order_and_duplicates_do_not_matter(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    sids, sizes = case
    once, again = LiveTrie.build(sids, sizes), LiveTrie.build(np.concatenate([sids[::-1], sids]), sizes)
    for mine, other in zip(
        (*once.child_offsets, *once.child_codes), (*again.child_offsets, *again.child_codes), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


def test_empty_trie_holds_nothing() -> None:
    trie = LiveTrie.build(np.zeros((0, 3), np.int64), (4, 4, 4))
    assert trie.size == 0
    assert trie.live_counts == (0, 0, 0)
    assert trie.sids().shape == (0, 3)
    assert not trie.contains(np.array([[0, 0, 0]])).any()


@pytest.mark.parametrize(
    ("sids", "message"),
    [
        (np.array([[0, 0], [1, 4]]), r"sids\[1\]: \[1, 4\]: give codes from 0 to below \(2, 4\)"),
        (np.array([[0, -1]]), r"sids\[0\]: \[0, -1\]"),
        (np.array([[0, 0, 0]]), r"sids: shape \(1, 3\): give \[N, 2\]"),
        (np.array([[0.0, 1.0]]), "sids: type float64: give integer codes"),
    ],
)
def test_refuses_what_is_no_sid(sids: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LiveTrie.build(sids, (2, 4))


def test_a_built_trie_does_not_see_later_changes_of_its_input() -> None:
    sids = np.array([[0, 1], [1, 3]])
    trie = LiveTrie.build(sids, (2, 4))
    sids[:] = 0
    assert trie.sids().tolist() == [[0, 1], [1, 3]]
