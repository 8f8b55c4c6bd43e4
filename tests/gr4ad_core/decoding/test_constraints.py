"""The trie on a device: look-ups of many beams against a scan, and a copy that follows the trie's changes."""

import numpy as np
import pytest
import torch
from gr4ad_core.decoding.constraints import DeviceTrie, TorchTrie
from gr4ad_core.sid.trie import LiveTrie
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.brute_force_trie import BruteForceTrie, Sid

SIZES = (3, 4, 5)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")),
]
sids_of = st.tuples(*(st.integers(0, size - 1) for size in SIZES))


def expect(trie: TorchTrie, live: dict[Sid, int], rng: np.random.Generator, sizes: tuple[int, ...] = SIZES) -> None:
    """Hold the children of random beams against those of each alone."""
    oracle = BruteForceTrie(live)
    nodes_of = {(): int(trie.root_1)}
    for depth in range(3):
        prefixes = [list(nodes_of)[place] for place in rng.integers(0, len(nodes_of), 6)]

        children = trie.children(depth, torch.tensor([nodes_of[prefix] for prefix in prefixes]).view(2, 3))

        for (row, beam), prefix in zip(np.ndindex(2, 3), prefixes, strict=True):
            expected = oracle.children(prefix)
            n = len(expected)
            assert children.codes_BWM[row, beam][children.live_BWM[row, beam]].tolist() == expected
            codes_BN, _ = children.at(torch.full((2, n), beam), torch.arange(n).expand(2, n))
            assert codes_BN[row].tolist() == expected
        assert 0 <= int(children.codes_BWM.min()) <= int(children.codes_BWM.max()) < sizes[depth]
        nodes_of = next_depth(trie, depth, nodes_of)
        if not nodes_of:
            break
    assert nodes_of == live


def next_depth(trie: TorchTrie, depth: int, nodes_of: dict[Sid, int]) -> dict[Sid, int]:
    """Return all children of all nodes of a depth."""
    children = trie.children(depth, torch.tensor(list(nodes_of.values()))[None])
    parents_N, ranks_N = children.live_BWM[0].nonzero(as_tuple=True)
    codes_1N, nodes_1N = children.at(parents_N[None], ranks_N[None])
    prefixes = list(nodes_of)
    found = zip(parents_N.tolist(), codes_1N[0].tolist(), nodes_1N[0].tolist(), strict=True)
    return {(*prefixes[parent], code): node for parent, code, node in found}


@given(st.dictionaries(sids_of, st.integers(0, 10**6), max_size=25), st.integers(0, 2**32 - 1))
def test_children_of_many_beams_are_those_of_each(live: dict[Sid, int], seed: int) -> None:
    trie = LiveTrie.build(np.array(list(live), np.int64).reshape(-1, 3), SIZES, np.array(list(live.values()), np.int64))
    expect(TorchTrie.from_view(trie.view, "cpu"), live, np.random.default_rng(seed))


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_follows_the_changes(device: str) -> None:
    rng = np.random.default_rng(0)
    sizes = (6, 8, 40)
    live: dict[Sid, int] = {}
    trie = LiveTrie.build(np.zeros((0, 3), np.int64), sizes)
    copy = DeviceTrie(trie, device)
    layouts = {id(trie.view.links)}
    for turn in range(300):
        for _ in range(turn % 7):
            sid = tuple(rng.integers(0, sizes).tolist())
            if rng.random() < 0.7:
                trie.insert(sid, turn)
                live[sid] = turn
            else:
                trie.remove(sid)
                live.pop(sid, None)
        latest = copy.latest()
        shared = TorchTrie.from_view(trie.view, "cpu")
        assert latest.root_1.cpu().equal(shared.root_1)
        assert latest.root_1.data_ptr() != shared.root_1.data_ptr()
        for mine, its in zip((*latest.codes, *latest.links), (*shared.codes, *shared.links), strict=True):
            assert mine.cpu().equal(its)
        layouts.add(id(trie.view.links))
    assert len(layouts) > 1
    expect(latest.copy_to("cpu"), live, rng, sizes)


def test_a_search_shares_the_tries_memory() -> None:
    trie = LiveTrie.build(np.array([[0, 0, 0]]), SIZES)
    shown = TorchTrie.from_view(trie.view, "cpu")
    assert [links.data_ptr() for links in shown.links] == [links.ctypes.data for links in trie.view.links]
    trie.insert((0, 0, 4), 1)
    expect(shown, {(0, 0, 0): 0, (0, 0, 4): 1}, np.random.default_rng(0))
