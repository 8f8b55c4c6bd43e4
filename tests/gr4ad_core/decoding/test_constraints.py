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


def expect(trie: TorchTrie, live: dict[Sid, int], rng: np.random.Generator) -> None:
    """Hold the children of random beams against those of each alone."""
    oracle = BruteForceTrie(live)
    nodes_of = {(): int(trie.root_1)}
    for depth in range(3):
        prefixes = [list(nodes_of)[place] for place in rng.integers(0, len(nodes_of), 6)]

        children = trie.children(depth, torch.tensor([nodes_of[prefix] for prefix in prefixes]).view(2, 3))

        for place, prefix in zip(np.ndindex(2, 3), prefixes, strict=True):
            is_live = children.live_BWM[place]
            assert children.codes_BWM[place][is_live].tolist() == oracle.children(prefix)
            assert (children.codes_BWM[place] >= 0).all()
            assert (children.codes_BWM[place] < trie.bits.level_sizes[depth]).all()
        every = trie.children(depth, torch.tensor(list(nodes_of.values()))[None])
        nodes_of = {
            (*prefix, code): node
            for prefix, codes, nodes, is_live in zip(
                nodes_of, every.codes_BWM[0], every.nodes_BWM[0], every.live_BWM[0], strict=True
            )
            for code, node in zip(codes[is_live].tolist(), nodes[is_live].tolist(), strict=True)
        }
        if not nodes_of:
            break
    assert nodes_of == live


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
    layouts = {id(trie.view.pools)}
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
        for mine, its in zip(latest.pools, shared.pools, strict=True):
            assert mine.cpu().equal(its)
        layouts.add(id(trie.view.pools))
    assert len(layouts) > 1
    expect(TorchTrie(latest.bits, latest.root_1.cpu(), tuple(pool.cpu() for pool in latest.pools), None), live, rng)


def test_a_search_shares_the_tries_memory() -> None:
    trie = LiveTrie.build(np.array([[0, 0, 0]]), SIZES)
    shown = TorchTrie.from_view(trie.view, "cpu")
    assert [pool.data_ptr() for pool in shown.pools] == [pool.ctypes.data for pool in trie.view.pools]
    trie.insert((0, 0, 4), 1)
    expect(shown, {(0, 0, 0): 0, (0, 0, 4): 1}, np.random.default_rng(0))
