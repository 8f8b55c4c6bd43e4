"""Swing and InfoNCE as their formulas are written, term by term (method.md §1.1)."""

import math
from itertools import combinations


def swing(chosen: list[set[int]], i: int, j: int, alpha: float) -> float:
    """Return the strength of two items, from what each user chose."""
    both = [user for user, items in enumerate(chosen) if {i, j} <= items]
    total = 0.0
    for u, v in combinations(both, 2):
        weight = 1.0 / math.sqrt(len(chosen[u])) / math.sqrt(len(chosen[v]))
        total += weight / (alpha + len(chosen[u] & chosen[v]))
    return total


def info_nce(
    vectors: list[list[float]], pairs: list[tuple[int, int]], partners: dict[int, set[int]], temperature: float
) -> float:
    """Return the mean loss of pairs (i, j); k runs over the second items of the other pairs."""
    losses = []
    for number, (i, j) in enumerate(pairs):
        others = [k for place, (_, k) in enumerate(pairs) if place != number and k != i and k not in partners[i]]
        wanted = math.exp(_dot(vectors[i], vectors[j]) / temperature)
        rest = sum(math.exp(_dot(vectors[i], vectors[k]) / temperature) for k in others)
        losses.append(-math.log(wanted / (wanted + rest)))
    return sum(losses) / len(losses)


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
