import numpy as np
import torch
from gr4ad_core.decoding.constraints import TorchTrie
from gr4ad_core.sid.trie import LiveTrie
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.brute_force_trie import BruteForceTrie

SIZES = (3, 4, 5)


@given(st.sets(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), max_size=25), st.integers(0, 2**32 - 1))
def test_children_of_many_beams_are_those_of_each(sids: set[tuple[int, ...]], seed: int) -> None:
    oracle = BruteForceTrie(sids)
    trie = TorchTrie.from_trie(LiveTrie.build(np.array(sorted(sids), np.int64).reshape(-1, 3), SIZES), "cpu")
    rng = np.random.default_rng(seed)
    for depth in range(3):
        prefixes = oracle.prefixes(depth) or [()]  # the empty trie still has its root, without children
        nodes = rng.integers(0, len(prefixes), (2, 3))

        children = trie.children(depth, torch.from_numpy(nodes))

        for place, node in np.ndenumerate(nodes):
            live = children.live_BWM[place]
            expected = oracle.children(prefixes[node]) if sids else []
            assert children.codes_BWM[place][live].tolist() == expected
            deeper = [oracle.prefixes(depth + 1)[n] for n in children.nodes_BWM[place][live].tolist()]
            assert deeper == [(*prefixes[node], code) for code in expected]


def test_padding_holds_codes_that_a_look_up_can_use() -> None:
    trie = TorchTrie.from_trie(LiveTrie.build(np.array([[0, 0, 0], [0, 0, 4], [2, 3, 1]]), SIZES), "cpu")
    children = trie.children(2, torch.tensor([[0, 1]]))
    assert children.live_BWM.tolist() == [[[True, True], [True, False]]]
    assert int(children.codes_BWM.max()) < 5
    assert int(children.nodes_BWM.max()) < 3
