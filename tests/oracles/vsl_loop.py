"""VSL as the formulas read, one sample and one token at a time, in plain floats (method.md §3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def token_cost(logits: Sequence[float], target: int, smoothing: float = 0.0) -> float:
    """Return −Σ_k q_k log p_k where q puts 1 − smoothing on the target and spreads the rest over all tokens."""
    highest = max(logits)
    log_total = highest + math.log(sum(math.exp(x - highest) for x in logits))
    cost = 0.0
    for code, logit in enumerate(logits):
        share = smoothing / len(logits) + (1.0 - smoothing if code == target else 0.0)
        cost -= share * (logit - log_total)
    return cost


def vsl(
    level_logits: Sequence[Sequence[Sequence[float]]],
    ecpm_logits: Sequence[Sequence[float]],
    mtp_level_logits: Sequence[Sequence[Sequence[float]]],
    mtp_ecpm_logits: Sequence[Sequence[float]] | None,
    sids: Sequence[Sequence[int]],
    buckets: Sequence[int],
    weights: Sequence[float],
    lambda_e: float,
    lambda_mtp: float,
    smoothing: float,
) -> float:
    """Return E[ w · (L_SID + λ_e L_eCPM) + λ_mtp · L_MTP ]; the last token's target is smoothed."""
    total = 0.0
    for sample, sid in enumerate(sids):
        ntp = lambda_e * token_cost(ecpm_logits[sample], buckets[sample])
        for level, code in enumerate(sid):
            ntp += token_cost(level_logits[level][sample], code, smoothing if level == len(sid) - 1 else 0.0)
        total += weights[sample] * ntp
        if mtp_ecpm_logits is not None:
            mtp = lambda_e * token_cost(mtp_ecpm_logits[sample], buckets[sample])
            for level, code in enumerate(sid):
                mtp += token_cost(mtp_level_logits[level][sample], code, smoothing if level == len(sid) - 1 else 0.0)
            total += lambda_mtp * mtp
    return total / len(sids)
