"""The live trie against a set of SIDs: as built, under single changes, and while it is read by another thread."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.sid import trie as trie_module
from gr4ad_core.sid.trie import LiveTrie
from gr4ad_core.sid.trie_blocks import TrieView, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles.brute_force_trie import BruteForceTrie, Sid

WIDE = (2**16, 2**14, 2**16, 2**16)  # does not fit in 63 bits: sorted column by column
SHAPES = [(3, 4, 2), (5,), (2, 2, 2, 2), (1, 6), WIDE]


def codes_of(size: int) -> list[int]:
    """A few codes far apart, so that a wide codebook repeats a prefix, too."""
    return sorted({0, size // 3, size // 2, size - 1})


@st.composite
def sids_and_sizes(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    sizes = draw(st.sampled_from(SHAPES))
    rows = draw(st.integers(0, 30))
    columns = [draw(hnp.arrays(np.int64, rows, elements=st.sampled_from(codes_of(size)))) for size in sizes]
    return np.stack(columns, axis=1).reshape(rows, len(sizes)), sizes


def read(view: TrieView, pause: Callable[[], None] = lambda: None) -> dict[Sid, int]:
    """Return SIDs and slots as a search meets them, all nodes of a depth at once."""
    trie = TorchTrie.from_view(view, "cpu")
    prefixes, nodes = [()], trie.root_1
    for depth in range(trie.n_levels):
        pause()
        children = trie.children(depth, nodes[None])
        parents_N, ranks_N = children.live_BWM[0].nonzero(as_tuple=True)
        codes_1N, nodes_1N = children.at(parents_N[None], ranks_N[None])
        prefixes = [(*prefixes[p], code) for p, code in zip(parents_N.tolist(), codes_1N[0].tolist(), strict=True)]
        nodes = nodes_1N[0]
        if not len(nodes):
            return {}
    return dict(zip(prefixes, nodes.tolist(), strict=True))


def expect(trie: LiveTrie, live: dict[Sid, int]) -> None:
    """Hold a trie against what should be in it."""
    assert list(read(trie.view).items()) == sorted(live.items())
    oracle = BruteForceTrie(live)
    assert trie.live_counts == tuple(len(oracle.prefixes(t + 1)) if live else 0 for t in range(len(trie.level_sizes)))
    assert trie.size == len(live)


@given(sids_and_sizes())
def test_holds_exactly_the_sids_that_brute_force_holds(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    sids, sizes = case
    expect(LiveTrie.build(sids, sizes), {tuple(sid): row for row, sid in enumerate(sids.tolist())})


@given(sids_and_sizes(), st.randoms(use_true_random=False))
def test_order_does_not_matter(case: tuple[np.ndarray, tuple[int, ...]], draw: random.Random) -> None:
    sids, sizes = case
    once = np.unique(sids, axis=0)
    order = draw.sample(range(len(once)), len(once))
    one, other = LiveTrie.build(once, sizes), LiveTrie.build(once[order], sizes, np.array(order, np.int64))
    np.testing.assert_array_equal(one.view.root, other.view.root)
    for mine, its in zip((*one.view.codes, *one.view.links), (*other.view.codes, *other.view.links), strict=True):
        np.testing.assert_array_equal(mine, its)


@settings(deadline=None)
@given(
    sids_and_sizes(),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))),
)
def test_single_changes_leave_what_a_dictionary_holds(
    case: tuple[np.ndarray, tuple[int, ...]], changes: list[tuple[bool, int, int, int, int]]
) -> None:
    sids, sizes = case
    trie, live = LiveTrie.build(sids, sizes), {tuple(sid): row for row, sid in enumerate(sids.tolist())}
    for slot, (come, *picks) in enumerate(changes, start=100):
        sid = tuple(codes_of(size)[pick % len(codes_of(size))] for size, pick in zip(sizes, picks, strict=False))
        if come:
            assert trie.insert(sid, slot) == (sid not in live)
            live[sid] = slot
        else:
            assert trie.remove(sid) == (live.pop(sid, None) is not None)
        expect(trie, live)


def test_thousands_of_changes_across_many_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = []
    whole = trie_module.BlockPools

    def counted(*args):  # type: ignore[no-untyped-def]
        layouts.append(args)
        return whole(*args)

    monkeypatch.setattr(trie_module, "BlockPools", counted)
    draw, sizes = random.Random(3), (12, 10, 8)
    trie, live = LiveTrie.build(np.zeros((0, 3), np.int64), sizes), {}
    for slot in range(8000):
        growing = slot % 2000 < 1000
        if draw.random() < (0.8 if growing else 0.2):
            sid = tuple(draw.randrange(size) for size in sizes)
            trie.insert(sid, slot)
            live[sid] = slot
        elif live:
            sid = draw.choice(list(live)) if draw.random() < 0.9 else tuple(draw.randrange(size) for size in sizes)
            assert trie.remove(sid) == (live.pop(sid, None) is not None)
        if slot % 100 == 0:
            expect(trie, live)
    expect(trie, live)
    assert len(layouts) > 5


def test_changes_during_a_compaction_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow_walk(view: TrieView):  # type: ignore[no-untyped-def]
        halves = walk(view)
        begun.set()
        assert go_on.wait(10)
        return halves

    monkeypatch.setattr(trie_module, "walk", slow_walk)
    draw, sizes = random.Random(5), (40, 6, 50)
    every = [(a, b, c) for a in range(40) for b in range(6) for c in range(50)]
    live = {sid: slot for slot, sid in enumerate(draw.sample(every, 2000))}
    trie = LiveTrie.build(np.array(list(live)), sizes, np.array(list(live.values())))
    before = trie.view.links
    while all(thread.name != "trie compaction" for thread in threading.enumerate()):  # fill the spare room
        sid = draw.choice(every)
        trie.insert(sid, 7)
        live[sid] = 7
    assert begun.wait(10)
    for _ in range(20):
        gone = draw.choice(list(live))
        assert trie.remove(gone)
        del live[gone]
        trie.insert(kept := draw.choice(list(live)), 9)
        live[kept] = 9
        assert trie.view.links is before  # read and changed as it was, while the other is laid out
    assert read(trie.view) == live
    go_on.set()
    while trie.view.links is before:
        trie.insert(kept, 9)
    monkeypatch.setattr(trie_module, "walk", walk)
    expect(trie, live)


def test_a_view_keeps_what_it_can_reach() -> None:
    sizes = (2, 4, 50)
    sids = np.array([[1, 2, code] for code in range(20)])
    trie = LiveTrie.build(sids, sizes)
    view = trie.view
    held = TorchTrie.from_view(view, "cpu")
    zero = torch.zeros(1, 1, dtype=torch.int64)
    _, node = held.children(0, held.root_1[None]).at(zero, zero)
    _, node = held.children(1, node).at(zero, zero)
    for code in range(20):
        trie.remove((1, 2, code))
        trie.insert((0, 3, code), 99)
        trie.insert((0, 3, code + 20), 99)
    children = held.children(2, node)
    assert children.live_BWM.all()
    codes, slots = children.at(torch.zeros(1, 20, dtype=torch.int64), torch.arange(20)[None])
    assert codes.tolist() == slots.tolist() == [list(range(20))]


def test_blocks_are_used_again_once_no_view_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie_module, "_Compaction", None)  # would fail if room ran out
    trie = LiveTrie.build(np.array([[1, 2, 3], [1, 2, 5]]), (2, 4, 8))
    for turn in range(1000):
        trie.remove((1, 2, 3))
        trie.insert((1, 2, 3), turn)
        trie.insert((0, 0, 0), turn)
        trie.remove((0, 0, 0))
    assert read(trie.view) == {(1, 2, 3): 999, (1, 2, 5): 1}


def test_memory_follows_what_is_live_not_what_changed() -> None:
    draw, sizes = random.Random(1), (8, 64, 64)
    live = [(draw.randrange(8), draw.randrange(64), draw.randrange(64)) for _ in range(10_000)]
    trie = LiveTrie.build(np.array(live), sizes)
    built = trie.nbytes
    for place in range(30_000):
        trie.remove(live[place % len(live)])
        live[place % len(live)] = tuple(draw.randrange(size) for size in sizes)
        trie.insert(live[place % len(live)], 0)
    assert trie.nbytes < 1.5 * built


@pytest.mark.parametrize("seed", range(2))
def test_a_reader_never_meets_half_a_change(seed: int) -> None:
    """One thread changes ads at random; readers find every ad that stays, no ad that never was, and no wrong slot."""
    draw, sizes = random.Random(seed), (4, 8, 30)
    every = [(a, b, c) for a in range(4) for b in range(8) for c in range(30)]
    slots = {sid: 10 * number for number, sid in enumerate(every)}
    column = (3, 7)  # of this node the children are always 0 … k
    elsewhere = [sid for sid in every if sid[:2] != column]
    draw.shuffle(elsewhere)
    stays, never, comes_and_goes = set(elsewhere[:200]), set(elsewhere[200:400]), elsewhere[400:]
    first = [*stays, (*column, 0)]
    trie = LiveTrie.build(np.array(first), sizes, np.array([slots[sid] for sid in first]))
    stop, wrong, reads, changes = threading.Event(), [], [0, 0], [0]

    def write() -> None:
        top = 0
        while not stop.is_set():
            sid = draw.choice(comes_and_goes)
            trie.insert(sid, slots[sid]) if draw.random() < 0.5 else trie.remove(sid)
            rising = (changes[0] // 29) % 2 == 0
            if rising and top < 29:
                top += 1
                trie.insert((*column, top), slots[*column, top])
            elif not rising and top > 0:
                trie.remove((*column, top))
                top -= 1
            changes[0] += 1

    def look(number: int) -> None:
        while not stop.is_set():
            found = read(trie.view, pause=lambda: time.sleep(0.0002))
            reads[number] += 1
            missing, dead = stays - set(found), never & set(found)
            lies = [sid for sid, slot in found.items() if slot != slots[sid]]
            in_column = [sid[2] for sid in found if sid[:2] == column]
            if missing or dead or lies or in_column != list(range(len(in_column))) or not in_column:
                wrong.append((missing, dead, lies, in_column))
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=write), *(threading.Thread(target=look, args=(number,)) for number in (0, 1))]
    try:
        for thread in threads:
            thread.start()
        time.sleep(1.0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not wrong
    assert min(reads) > 20
    assert changes[0] > 1000


def test_empty_trie_holds_nothing() -> None:
    trie = LiveTrie.build(np.zeros((0, 3), np.int64), (4, 4, 4))
    expect(trie, {})
    assert not trie.remove((0, 0, 0))
    assert trie.insert((3, 3, 3), 5)
    assert trie.remove((3, 3, 3))
    expect(trie, {})


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


@pytest.mark.parametrize("sid", [(0,), (0, 4), (-1, 0), (0, 0, 0)])
def test_refuses_to_change_what_is_no_sid(sid: Sid) -> None:
    trie = LiveTrie.build(np.array([[1, 2]]), (2, 4))
    for change in (lambda: trie.insert(sid, 0), lambda: trie.remove(sid)):
        with pytest.raises(ValueError, match=r"sid: .*: give codes from 0 to below \(2, 4\)"):
            change()
    expect(trie, {(1, 2): 0})


def test_refuses_slots_that_are_not_one_a_sid() -> None:
    with pytest.raises(ValueError, match=r"slots: shape \(1,\): give \[2\]"):
        LiveTrie.build(np.array([[0, 0], [1, 1]]), (2, 4), np.array([1]))


def test_refuses_levels_whose_blocks_could_be_too_long() -> None:
    with pytest.raises(ValueError, match=r"level_sizes: \(4, 16777216\): give levels of at most 16777215 codes"):
        LiveTrie.build(np.zeros((0, 2), np.int64), (4, 2**24))


def test_a_built_trie_does_not_see_later_changes_of_its_input() -> None:
    sids = np.array([[0, 1], [1, 3]])
    trie = LiveTrie.build(sids, (2, 4))
    sids[:] = 0
    expect(trie, {(0, 1): 0, (1, 3): 1})
