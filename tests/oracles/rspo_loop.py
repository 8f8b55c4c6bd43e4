"""RSPO, DPO and their balance with VSL as the formulas read, one list and one pair at a time (method.md §3.2, §3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

Floats = Sequence[float]


def positions(values: Floats) -> list[int]:
    """Return each item's position, from 1, in the stable order by falling reward."""
    order = sorted(range(len(values)), key=lambda k: -values[k])
    return [order.index(k) + 1 for k in range(len(values))]


def pair_weights(values: Floats) -> list[dict[int, float]]:
    """Return M_ij by j ∈ E_i, for every i."""

    def discount(k: int) -> float:
        return math.log2(1 + k)

    place = positions(values)
    ideal = sum(value / discount(place[k]) for k, value in enumerate(values))
    weights = []
    for i, v_i in enumerate(values):
        row = {}
        for j, v_j in enumerate(values):
            if v_j < v_i:
                gap = abs(place[i] - place[j])
                row[j] = (1 / discount(gap) - 1 / discount(gap + 1)) * abs(v_i / ideal - v_j / ideal)
        weights.append(row)
    return weights


def item_losses(log_p: Floats, log_ref: Floats | None, values: Floats, beta: float, delta: float) -> list[float | None]:
    """Return ℓ_i of every item of a list; None where E_i is empty."""
    losses: list[float | None] = []
    for i, row in enumerate(pair_weights(values)):
        if not row:
            losses.append(None)
            continue
        switch = 0.0
        if log_ref is not None:
            ratios = [log_p[k] - log_ref[k] for k in (*row, i)]
            switch = 1.0 if sum(ratios) / len(ratios) < delta else 0.0
        s = [beta * (log_p[k] - (switch * log_ref[k] if log_ref is not None else 0.0)) for k in range(len(log_p))]
        total = sum(m * math.exp(s[j] - s[i]) for j, m in row.items())
        losses.append(-math.log2(1 / (1 + math.exp(math.log(total)))))
    return losses


def ndcg_cost(scores: Floats, values: Floats) -> list[float]:
    """Return Σ_j M_ij · 1[ s_j ≥ s_i ] of every item."""
    return [sum(m for j, m in row.items() if scores[j] >= scores[i]) for i, row in enumerate(pair_weights(values))]


def dpo(log_p: Floats, log_ref: Floats | None, values: Floats, beta: float) -> float | None:
    """Return the loss of the best item against the worst; None where all rewards are equal."""
    place = positions(values)
    best, worst = place.index(1), place.index(len(values))
    if not values[best] > values[worst]:
        return None
    margin = log_p[best] - log_p[worst] - (0.0 if log_ref is None else log_ref[best] - log_ref[worst])
    return -math.log2(1 / (1 + math.exp(-beta * margin)))


def disagreement(log_p: Floats, values: Floats) -> list[float]:
    """Return A_i of every item of a list."""

    def rank(scores: Floats, i: int) -> float:
        tied = [place for place, score in enumerate(sorted(scores, reverse=True)) if score == scores[i]]
        return sum(tied) / len(tied)

    n = len(values)
    return [abs(rank(log_p, i) - rank(values, i)) / (n - 1) if n > 1 else 0.0 for i in range(n)]


def balance(lists: Sequence[tuple[Floats, Floats]]) -> tuple[list[list[float]], list[list[float]]]:
    """Return w_VSL and w_RL of every item of lists of (log p, rewards), each with a mean of 1."""
    every_value = [value for _, values in lists for value in values]
    mean = sum(every_value) / len(every_value)
    imitate, explore = [], []
    for log_p, values in lists:
        apart = disagreement(log_p, values)
        imitate.append(
            [math.exp(a * math.log(1 + (v / mean if mean else 0.0))) for a, v in zip(apart, values, strict=True)]
        )
        explore.append([1 - a for a in apart] if len(values) > 1 else [])

    def scaled(rows: list[list[float]]) -> list[list[float]]:
        flat = [x for row in rows for x in row]
        return [[x * len(flat) / sum(flat) if sum(flat) else 0.0 for x in row] for row in rows]

    return scaled(imitate), [row or [0.0] for row in scaled(explore)]
