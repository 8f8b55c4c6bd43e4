"""A user's past as data, free of torch (method.md §2.1).

Shapes: n events, T SID levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class UserHistory:
    """What is known of one user at one moment."""

    sids: NDArray[np.int64]
    """SIDs of the ads of the past events, oldest first, `[n, T]`."""
    behaviors: NDArray[np.int64]
    """What the user did, 1 impression, 2 click, 3 conversion, `[n]`."""
    event_times: NDArray[np.float64]
    """When, in Unix seconds; NaN where unknown, `[n]`."""
    request_time: float = float("nan")
    """The moment of the request in Unix seconds; NaN where unknown."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Categorical user and request features."""
