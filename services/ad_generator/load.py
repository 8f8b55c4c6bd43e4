"""How much the generator is asked for: the rate of arrivals, and how long requests waited for their turn."""

from __future__ import annotations

import math
from typing import Final

RATE_MEMORY_S: Final = 0.5
"""Arrivals this long ago count 1/e as much as those of now: as short as chance allows, so that a crowd shows soon."""
LEAST_SEEN_S: Final = 0.2
"""A rate is over no shorter time, however recent the first arrival."""
DELAY_MEMORY: Final = 0.1
"""Weight of the latest batch in the running queue delay."""


class LoadEstimator:
    """Follows arrivals and waits; times are seconds of one monotonic clock. Changed by one thread."""

    def __init__(self) -> None:
        """Start without any arrival."""
        self._count = 0.0
        self._at = 0.0
        self._since: float | None = None
        self.queue_delay_s = 0.0
        """Running mean of how long the oldest request of each batch waited."""

    def arrived(self, now: float) -> None:
        """Count a request, answered or refused."""
        if self._since is None:
            self._since = now
        self._count = 1.0 + self._count * math.exp(min(0.0, self._at - now) / RATE_MEMORY_S)
        self._at = max(self._at, now)

    def waited(self, delay_s: float) -> None:
        """Note how long the oldest request of a batch waited."""
        self.queue_delay_s += DELAY_MEMORY * (delay_s - self.queue_delay_s)

    def rate(self, now: float) -> float:
        """Return arrivals a second: an exponential window, corrected for the time before the first arrival."""
        if self._since is None:
            return 0.0
        seen_s = max(now - self._since, LEAST_SEEN_S)
        left = math.exp(min(0.0, self._at - now) / RATE_MEMORY_S)
        return self._count * left / (RATE_MEMORY_S * -math.expm1(-seen_s / RATE_MEMORY_S))
