"""What a model call costs: fitted to the calls as they come, so that it follows the policy, the machine and its
neighbours.

The law is `duration = call_s · searches + request_s · requests + beam_s · beams`, beams being the sum of the widths of
all levels and requests. Each call corrects the three coefficients by recursive least squares on relative errors.
Forgetting is directional: a call displaces only what was known about calls like it, so hours of single requests do not
wipe out what a full batch costs. Coefficients stay positive, and a call that took far longer than expected counts as
moderately longer.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_FORGOTTEN: Final = 0.05
"""Share of what is known about calls alike that each of them displaces: about the last twenty count."""
MOST_FORGOTTEN: Final = 0.5
"""The same where predictions are far off; in between it is half of the running error."""
ERROR_MEMORY: Final = 0.05
"""Weight of the latest call in the running error."""
OUTLIER: Final = 4.0
"""A duration counts as at most so many running errors from the expected one."""
LEAST_ERROR: Final = 0.05
"""Running error below which none is taken for an outlier."""
LEAST_SHARE: Final = 1e-3
"""No coefficient falls below this share of the one before any data."""
LARGEST_MARGIN: Final = 1.0
TAIL_CALLS: Final = 100
"""Latest calls from which the error that is seldom exceeded is read: where the machine has too much to do, a few calls
take far longer than the mean error tells."""


class CallSize(NamedTuple):
    """What a model call's duration depends on."""

    searches: int
    """Searches that the call consists of, one after the other."""
    requests: int
    """Requests in all."""
    beams: int
    """Widths of all levels and requests, added up."""


@dataclass(frozen=True)
class Costs:
    """The coefficients at one moment."""

    call_s: float
    """Of each search, whatever it holds."""
    request_s: float
    """Of each request, whatever its widths."""
    beam_s: float
    """Of each beam of each request."""
    error: float = 0.0
    """Running mean of the relative error of predictions."""
    tail: float = 0.0
    """By which share of the prediction the second slowest of the last `TAIL_CALLS` calls was late."""

    def predict(self, size: CallSize) -> float:
        """Return the expected duration, in seconds."""
        return self.call_s * size.searches + self.request_s * size.requests + self.beam_s * size.beams

    @property
    def margin(self) -> float:
        """Factor from the expected duration to one that is seldom exceeded."""
        return 1.0 + min(LARGEST_MARGIN, max(2.0 * self.error, self.tail))


PRIOR: Final = Costs(call_s=2e-3, request_s=5e-4, beam_s=5e-6)
"""Before any call: a small policy on one core."""


class CostModel:
    """Fits the costs; used by one thread."""

    def __init__(self, prior: Costs = PRIOR) -> None:
        """Start from coefficients that the first calls replace."""
        # Coefficients are kept relative to the prior: of order 1, whatever the machine.
        self._unit_3 = np.array([prior.call_s, prior.request_s, prior.beam_s])
        self._relative_3 = np.ones(3)
        self._information_33 = 0.1 * np.eye(3)
        self._calls = 0
        self._errors: deque[float] = deque(maxlen=TAIL_CALLS)
        self.costs = Costs(prior.call_s, prior.request_s, prior.beam_s, error=1.0)
        """The latest."""

    def observe(self, size: CallSize, duration_s: float) -> float:
        """Take a call into account.

        Args:
            size: Of the call.
            duration_s: How long it took, above 0.

        Returns:
            Its duration relative to the expected one, less 1.
        """
        expected_s = self.costs.predict(size)
        error = float(duration_s / expected_s - 1.0)
        self._calls += 1
        self._errors.append(error)
        allowed = OUTLIER * max(self.costs.error, LEAST_ERROR)
        self._correct(
            self._unit_3 * np.array([size.searches, size.requests, size.beams], np.float64) / expected_s,
            min(max(error, 1.0 / (1.0 + allowed) - 1.0), allowed),
        )
        weight = max(ERROR_MEMORY, 1.0 / (1 + self._calls))
        running = (1.0 - weight) * self.costs.error + weight * min(abs(error), 1.0)
        tail = heapq.nlargest(2, [0.0, 0.0, *self._errors])[1]
        call_s, request_s, beam_s = (self._relative_3 * self._unit_3).tolist()
        self.costs = Costs(call_s, request_s, beam_s, error=running, tail=tail)
        return error

    def _correct(self, x_3: NDArray[np.float64], residual: float) -> None:
        """Recursive least squares; forgets in the direction of the new data only (Cao and Schwartz, 2000)."""
        known_3 = self._information_33 @ x_3
        forgotten = min(MOST_FORGOTTEN, max(LEAST_FORGOTTEN, 0.5 * self.costs.error))
        self._information_33 += np.outer(x_3, x_3) - forgotten * np.outer(known_3, known_3) / (x_3 @ known_3)
        step_3 = np.linalg.solve(self._information_33, x_3) * residual
        wanted = x_3 @ (self._relative_3 + step_3)
        self._relative_3 = np.maximum(self._relative_3 + step_3, LEAST_SHARE)
        # Where a bound was met, the others make up for it: the prediction moves as far as it should.
        self._relative_3 = np.maximum(self._relative_3 * (wanted / (x_3 @ self._relative_3)), LEAST_SHARE)
