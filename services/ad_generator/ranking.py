"""The final ranking of candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranking_order(
    log_probs: NDArray[np.float64], ecpm_micros: NDArray[np.float64], value_weight: float
) -> NDArray[np.int64]:
    """Order candidates by `log_prob + value_weight · log(predicted_ecpm)`, the best first (method.md §2.3).

    With weight 1 this is the order of `p(ad | user) · E[eCPM | ad, user]`, with 0 that of the likelihood alone.

    Args:
        log_probs: Natural logarithms of the policy's probabilities, `[..., n]`; −∞ goes last.
        ecpm_micros: Expected eCPM, same shape; below one micro counts as one micro.
        value_weight: Weight of the value.

    Returns:
        Positions along the last axis, same shape; equal scores keep their order.
    """
    scores = log_probs + value_weight * np.log(np.maximum(ecpm_micros, 1.0))
    order: NDArray[np.int64] = np.argsort(-scores, axis=-1, kind="stable")
    return order
