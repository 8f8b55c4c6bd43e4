"""Policies that change while requests flow."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable
from typing import Final

from gr4ad.training.v1 import training_pb2, training_pb2_grpc

from gr4ad_tools.bench.serve.client import ANSWERED, Outcome
from gr4ad_tools.bench.serve.stage import CHANNEL, POLICY_IDS

CALL_TIMEOUT_S: Final = 10.0


class PolicySwaps:
    """Makes the policies of a stage current in turn.

    Attributes:
        asked: How often one was made current.
    """

    def __init__(self, stub: training_pb2_grpc.TrainingServiceAsyncStub, per_minute: float) -> None:
        """Start where the first policy is current.

        Args:
            stub: Of the trainer.
            per_minute: Swaps a minute; 0 for none.
        """
        self.asked = 0
        self._stub = stub
        self._per_minute = per_minute
        self._next = itertools.cycle(POLICY_IDS[1:] + POLICY_IDS[:1])

    async def run(self) -> None:
        """Swap at the given rate until cancelled."""
        begin, turn = time.monotonic(), 0
        while self._per_minute:
            turn += 1
            await asyncio.sleep(max(0.0, begin + 60.0 * turn / self._per_minute - time.monotonic()))
            request = training_pb2.ActivatePolicyRequest(policy_id=next(self._next), channel=CHANNEL)
            await self._stub.ActivatePolicy(request, timeout=CALL_TIMEOUT_S)
            self.asked += 1


def swaps_seen(outcomes: Iterable[Outcome]) -> int:
    """Count how often the policy changed from one answer to the next, in the order in which they came."""
    answers = sorted((outcome for outcome in outcomes if outcome.code == ANSWERED), key=lambda each: each.received)
    return sum(before.policy_id != after.policy_id for before, after in itertools.pairwise(answers))
