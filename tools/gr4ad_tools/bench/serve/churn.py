"""Ads that come and go while requests flow, and what may be returned at which moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc

from gr4ad_tools.bench.serve.client import Outcome
from gr4ad_tools.live_index import PAUSE_LIMIT_S

CALL_TIMEOUT_S: Final = 10.0


class Churn:
    """Pauses ads and creates others through the SID assigner, and knows when each was live.

    Attributes:
        created: Since when each ad may be returned: when its creation was sent, in monotonic seconds.
        paused_at: When the pause of an ad was acknowledged, in monotonic seconds.
    """

    def __init__(
        self,
        stub: sid_pb2_grpc.SidServiceAsyncStub,
        ad_ids: Iterable[str],
        spare: Iterator[sid_pb2.Ad],
        per_s: float,
        seed: int,
    ) -> None:
        """Start from a catalogue.

        Args:
            stub: Of the SID assigner.
            ad_ids: Live ads, none of them paused.
            spare: Ads to create, without end.
            per_s: Pauses a second, and as many creations; 0 for none.
            seed: Of which ads are paused.
        """
        self.created = dict.fromkeys(ad_ids, -np.inf)
        self.paused_at: dict[str, float] = {}
        self._stub = stub
        self._spare = spare
        self._per_s = per_s
        self._rng = np.random.default_rng(seed)
        self._shown: list[str] = []

    def saw(self, outcomes: Iterable[Outcome]) -> None:
        """Pause of these ads next: one that is never returned would show nothing by its absence."""
        shown = {ad_id for outcome in outcomes for ad_id in outcome.ad_ids} - self.paused_at.keys()
        self._shown = self._rng.permutation(sorted(shown)).tolist()

    async def run(self) -> None:
        """Change the catalogue at the given rate until cancelled."""
        begin, turn = time.monotonic(), 0
        while self._per_s:
            turn += 1
            await asyncio.sleep(max(0.0, begin + turn / self._per_s - time.monotonic()))
            await self._create(next(self._spare))
            if self._shown:
                await self._pause(self._shown.pop())

    async def _create(self, ad: sid_pb2.Ad) -> None:
        self.created[ad.ad_id] = time.monotonic()
        request = sid_pb2.BatchCreateAdSidsRequest(request_id=f"create-{ad.ad_id}", ads=[ad])
        await self._stub.BatchCreateAdSids(request, timeout=CALL_TIMEOUT_S)

    async def _pause(self, ad_id: str) -> None:
        request = sid_pb2.UpdateAdRequest(ad_id=ad_id, state=sid_pb2.AD_STATE_PAUSED)
        await self._stub.UpdateAd(request, timeout=CALL_TIMEOUT_S)
        self.paused_at[ad_id] = time.monotonic()

    def invalid(self, outcomes: Sequence[Outcome]) -> int:
        """Count returned ads that were not live: unknown, not yet created when the answer came, or acknowledged as
        paused more than a second before the request was sent."""
        return sum(
            self.created.get(ad_id, np.inf) > outcome.received
            or self.paused_at.get(ad_id, np.inf) + PAUSE_LIMIT_S < outcome.sent
            for outcome in outcomes
            for ad_id in outcome.ad_ids
        )
