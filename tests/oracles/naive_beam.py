"""Beam search with lists and a dictionary of children, every prefix decoded from scratch (method.md §4)."""

from __future__ import annotations

from gr4ad_core.model.history import UserHistory

from tests.oracles.brute_force_trie import BruteForceTrie, Sid
from tests.oracles.plain_decoder import PlainDecoder


def naive_beam_search(
    decoder: PlainDecoder, history: UserHistory, trie: BruteForceTrie, widths: tuple[int, ...]
) -> list[tuple[Sid, float]]:
    """Return the SIDs that survive and their log-probabilities, the best first."""
    beams: list[tuple[Sid, float]] = [((), 0.0)]
    for width in widths:
        grown = []
        for prefix, log_prob in beams:
            children = trie.children(prefix)
            if not children:
                continue
            log_probs = decoder.next_log_probs(history, prefix)
            grown += [((*prefix, code), log_prob + float(log_probs[code])) for code in children]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return beams
