"""Four indexes of live SIDs that answer the same question, each in the form in which its own search would ask.

Shapes: N SIDs, T levels (here always 3), P prefixes of two codes, M children of the widest prefix in the question,
E pairs of a prefix and a code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from gr4ad_core.decoding.constraints import Children, TorchTrie
from gr4ad_core.sid.trie import LiveTrie
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

FAN_OUT: Final = 3.0
"""Mean number of live codes behind a live prefix of two."""


def generated_sids(count: int, level_sizes: Sequence[int], rng: np.random.Generator) -> Ints:
    """Draw live SIDs: distinct prefixes of two codes, and behind each a geometric number of codes with mean `FAN_OUT`.

    Args:
        count: SIDs N.
        level_sizes: Of three levels; the last a power of two.
        rng: Source of chance.

    Returns:
        `[N, 3]` in lexicographic order.
    """
    prefixes = round(count / FAN_OUT)
    pairs_P = np.sort(rng.choice(level_sizes[0] * level_sizes[1], prefixes, replace=False, shuffle=False))
    fan_outs_P = np.minimum(rng.geometric(1.0 / FAN_OUT, prefixes), level_sizes[2] // 2)
    while difference := count - int(fan_outs_P.sum()):
        some = rng.choice(np.flatnonzero((difference > 0) | (fan_outs_P > 1)), min(abs(difference), prefixes // 10 + 1))
        fan_outs_P[np.unique(some)[: abs(difference)]] += np.sign(difference)
    # An odd step never meets a code twice on its way around a power of two.
    starts_P = rng.integers(0, level_sizes[2], prefixes)
    steps_P = 2 * rng.integers(0, level_sizes[2] // 2, prefixes) + 1
    rank_N = np.arange(count) - np.repeat(np.cumsum(fan_outs_P) - fan_outs_P, fan_outs_P)
    last_N = (np.repeat(starts_P, fan_outs_P) + rank_N * np.repeat(steps_P, fan_outs_P)) % level_sizes[2]
    packed_N = np.sort(np.repeat(pairs_P, fan_outs_P) * level_sizes[2] + last_N)
    pairs_N = packed_N // level_sizes[2]
    sids_NT: Ints = np.stack([pairs_N // level_sizes[1], pairs_N % level_sizes[1], packed_N % level_sizes[2]], axis=1)
    return sids_NT


class SidIndex(Protocol):
    """What one step of a search asks."""

    def prefixes(self, chosen_P: Ints) -> Any:
        """Return some live prefixes of two codes, by their lexicographic number, as a search would hold them."""

    def step(self, prefixes: Any) -> Any:
        """Find all live codes behind each prefix: what is timed."""

    def pairs(self, found: Any) -> tuple[Ints, Ints]:
        """Return a step's answer as number of the prefix and code, `[E]` each, in lexicographic order."""


class OurTrie:
    """The live trie by the look-up that beam search uses."""

    def __init__(self, sids_NT: Ints, level_sizes: tuple[int, ...]) -> None:
        self.trie = LiveTrie.build(sids_NT, level_sizes)
        self.tensors = TorchTrie.from_view(self.trie.view, "cpu")
        first = self.tensors.children(0, self.tensors.root_1[None])
        second = self.tensors.children(1, _nodes(first))
        self._nodes_P = _nodes(second)[0]

    def prefixes(self, chosen_P: Ints) -> Tensor:
        return self._nodes_P[torch.from_numpy(chosen_P)][None]

    def step(self, prefixes: Tensor) -> tuple[Tensor, Tensor]:
        children = self.tensors.children(2, prefixes)
        return children.codes_BWM[0], children.live_BWM[0]

    def pairs(self, found: tuple[Tensor, Tensor]) -> tuple[Ints, Ints]:
        codes_PM, live_PM = found
        return live_PM.nonzero()[:, 0].numpy(), codes_PM[live_PM].numpy()


class FrozenCsr:
    """Our own rendering of the published frozen trie in compressed sparse rows (arXiv 2602.22647).

    A node is a number; the children of node `v` are the entries `offsets[v]` up to `offsets[v + 1]`, and each entry's
    place is the child's number at the next depth. All children of all beams come by two gathers, without loops. A
    change of the set needs a new build.
    """

    def __init__(self, sids_NT: Ints, level_sizes: tuple[int, ...]) -> None:
        del level_sizes
        is_new_NT = np.ones(sids_NT.shape, dtype=bool)
        np.logical_or.accumulate(sids_NT[1:] != sids_NT[:-1], axis=1, out=is_new_NT[1:])
        prefixes, leaves = np.flatnonzero(is_new_NT[:, 1]), np.flatnonzero(is_new_NT[:, 2])
        self._offsets = torch.from_numpy(np.append(np.searchsorted(leaves, prefixes), len(leaves)))
        room = np.zeros(int(self._offsets.diff().max()), np.int64)  # behind the last row, for padding
        self._codes = torch.from_numpy(np.append(sids_NT[leaves, 2], room).astype(np.int32))

    def prefixes(self, chosen_P: Ints) -> Tensor:
        return torch.from_numpy(chosen_P)

    def step(self, prefixes: Tensor) -> tuple[Tensor, Tensor]:
        first_P = self._offsets.index_select(0, prefixes)
        count_P = self._offsets.index_select(0, prefixes + 1) - first_P
        fanout = int(count_P.max())
        codes_PM = self._codes.unfold(0, fanout, 1).index_select(0, first_P)
        return codes_PM, torch.arange(fanout) < count_P[:, None]

    pairs = OurTrie.pairs


class SortedSids:
    """One sorted array of packed SIDs, searched by bisection for the range of each prefix."""

    def __init__(self, sids_NT: Ints, level_sizes: tuple[int, ...]) -> None:
        self._last = level_sizes[2]
        pairs_N = sids_NT[:, 0] * level_sizes[1] + sids_NT[:, 1]
        self._packed_N = pairs_N * self._last + sids_NT[:, 2]
        self._pairs_P = np.unique(pairs_N)

    def prefixes(self, chosen_P: Ints) -> Ints:
        return self._pairs_P[chosen_P]

    def step(self, prefixes: Ints) -> tuple[Ints, Ints]:
        low_P = prefixes * self._last
        first_P = np.searchsorted(self._packed_N, low_P)
        count_P = np.searchsorted(self._packed_N, low_P + self._last) - first_P
        parents_E = np.repeat(np.arange(len(prefixes)), count_P)
        places_E = np.arange(len(parents_E)) + (first_P - np.cumsum(count_P) + count_P)[parents_E]
        return parents_E, self._packed_N[places_E] - low_P[parents_E]

    def pairs(self, found: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        return found


class DictTrie:
    """A trie of nested dictionaries, walked from its root by each beam's codes, as Python decoders do."""

    def __init__(self, sids_NT: Ints, level_sizes: tuple[int, ...]) -> None:
        del level_sizes
        self._root: dict[int, dict[int, dict[int, int]]] = {}
        self._prefixes: list[tuple[int, int]] = []
        for slot, (a, b, c) in enumerate(sids_NT.tolist()):
            node = self._root.setdefault(a, {})
            if b not in node:
                node[b] = {}
                self._prefixes.append((a, b))
            node[b][c] = slot

    def prefixes(self, chosen_P: Ints) -> list[tuple[int, int]]:
        return [self._prefixes[place] for place in chosen_P.tolist()]

    def step(self, prefixes: list[tuple[int, int]]) -> tuple[Ints, Ints]:
        parents: list[int] = []
        codes: list[int] = []
        for number, prefix in enumerate(prefixes):
            node: Any = self._root
            for code in prefix:
                node = node[code]
            parents += [number] * len(node)
            codes += node
        return np.array(parents), np.array(codes)

    def pairs(self, found: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        return found


def _nodes(children: Children) -> Tensor:
    """Return all children of the beams of one request, `[1, N]`."""
    parents_N, ranks_N = children.live_BWM[0].nonzero(as_tuple=True)
    return children.at(parents_N[None], ranks_N[None])[1]


MakeIndex = Callable[[Ints, tuple[int, ...]], SidIndex]


def live_slot(trie: LiveTrie, sid: Sequence[int]) -> int | None:
    """Return the slot of a SID by the look-ups of a search of one beam; None where it is not live."""
    tensors = TorchTrie.from_view(trie.view, "cpu")
    node_11 = tensors.root_1[None]
    for depth, code in enumerate(sid):
        children = tensors.children(depth, node_11)
        at_N = (children.live_BWM & (children.codes_BWM == code)).nonzero()
        if not len(at_N):
            return None
        _, node_11 = children.at(at_N[:, 1:2], at_N[:, 2:])
    return int(node_11)
