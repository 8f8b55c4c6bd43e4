"""The slow oracle of the benchmark: beam search by lists, every prefix decoded whole again, in float64.

Shapes: N prefixes, T SID levels, P positions of a path, D model width.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from gr4ad_core.model.context import ContextInputs
from gr4ad_core.model.lazy_ar import LazyAr

from gr4ad_tools.bench.decode.workload import Ints

Sid = tuple[int, ...]

TIE: Final = 1e-4
"""Log-probabilities that differ by less are tied: float32 cannot tell them apart after three levels of sums."""


@dataclass(frozen=True)
class ExactList:
    """What survives in one request's search."""

    log_probs: dict[Sid, float]
    """SIDs and their log-probabilities, the best first."""
    cuts: tuple[float, ...]
    """The least log-probability that was kept at each level."""


class ExactSearch:
    """Searches for one request at a time: no cache, no step, no tensor of children."""

    def __init__(self, model: LazyAr, sids_NT: Ints) -> None:
        """Copy the weights to float64 and put the live SIDs into a dictionary of prefixes."""
        self._model = copy.deepcopy(model).to(torch.float64)
        children: defaultdict[Sid, set[int]] = defaultdict(set)
        for sid in map(tuple, sids_NT.tolist()):
            for level, code in enumerate(sid):
                children[sid[:level]].add(code)
        self._children = dict(children)

    def find(self, inputs: ContextInputs, widths: tuple[int, ...]) -> ExactList:
        """Return the SIDs that survive for a batch of one request."""
        beams: list[tuple[Sid, float]] = [((), 0.0)]
        cuts = []
        for width in widths:
            next_log_probs = self._next_log_probs(inputs, [prefix for prefix, _ in beams])
            grown = [
                ((*prefix, code), log_prob + of_codes[code])
                for (prefix, log_prob), of_codes in zip(beams, next_log_probs, strict=True)
                for code in self._children[prefix]
            ]
            beams = sorted(grown, key=lambda beam: -beam[1])[:width]
            cuts.append(beams[-1][1])
        return ExactList(dict(beams), tuple(cuts))

    def overlap(self, inputs: ContextInputs, exact: ExactList, found: Sequence[Sid]) -> float:
        """Return the share of the exact list that another search found, up to ties.

        A SID that only the other search found counts where one of its prefixes, or itself, is tied with the least that
        the exact search kept at that level.

        Args:
            inputs: A batch of one request.
            exact: What `find` returned for it.
            found: SIDs of the other search with the same widths, no one twice.
        """
        others = [sid for sid in found if sid not in exact.log_probs]
        tied = [
            sid
            for sid in others
            if any(abs(log_p - cut) < TIE for log_p, cut in zip(self._log_probs(inputs, sid), exact.cuts, strict=True))
        ]
        return (len(found) - len(others) + len(tied)) / len(exact.log_probs)

    def _log_probs(self, inputs: ContextInputs, sid: Sid) -> list[float]:
        """Return log-probabilities of all prefixes of a SID, itself last."""
        total, found = 0.0, []
        for level, code in enumerate(sid):
            total += self._next_log_probs(inputs, [sid[:level]])[0][code]
            found.append(total)
        return found

    @torch.inference_mode()
    def _next_log_probs(self, inputs: ContextInputs, prefixes: Sequence[Sid]) -> list[list[float]]:
        """Decode prefixes of one length from the history on; return log-probabilities of all next codes of each."""
        level, n_levels = len(prefixes[0]), self._model.config.n_levels
        padded = [[[*prefix, *[0] * (n_levels - level)] for prefix in prefixes]]
        padded_1NT = torch.tensor(padded, device=self._model.device)
        h_1NPD = self._model.decode_paths(self._model.encode_context(inputs), padded_1NT)
        log_probs: list[list[float]] = self._model.level_logits(level, h_1NPD[0, :, level]).log_softmax(-1).tolist()
        return log_probs
