"""Answers kept for a minute, so that the same question is answered again without the model (method.md §4).

An answer depends on the user's context, the number of candidates, the policy and the catalogue. The first two are the
key. A swap of the policy, or a catalogue that is read anew, empties the cache. What a change of the catalogue does to
an answer is told from the live table when the answer is asked for:

- An ad of the list died: the answer is stale and computed anew, so no dead ad is served and no list runs short.
- An ad came to life that may belong in the list: the answer is stale. The first code of its SID tells: where no ad of
  the list shares that, it is of another kind than all of them. A list shorter than asked for has room for any ad.

So an ad that comes to life elsewhere leaves the answer standing, else inserts would end nearly all hits. Should the
model want that ad for this user nevertheless, it shows once the answer is too old. Bids take no part in an answer: the
expected eCPM is the policy's. Nor does the time since the computation, where the request states no time of its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
from gr4ad.generation.v1 import generation_pb2
from numpy.typing import NDArray

from ad_generator.ad_table import AdTable

OVERHEAD_BYTES: Final = 500
"""What an answer takes in memory beyond its message and its numbers: the objects around them and its key."""


def request_key(request: generation_pb2.GenerateAdsRequest) -> bytes:
    """Return what the answer to a request depends on, apart from policy and catalogue, as 32 bytes.

    That is the whole user context, a stated request time included (a replay as of another moment is another question),
    and the number of candidates. Neither the request's id nor its latency budget.
    """
    context = request.user_context.SerializeToString(deterministic=True)
    return blake2b(request.candidate_count.to_bytes(4, "big") + context, digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class Moment:
    """What a computation that begins now knows at least.

    Attributes:
        policy: What computes it; compared by identity.
        table: The catalogue's ads.
        arrivals: Ads that have come to life in the table.
        time_s: When, on the cache's clock.
    """

    policy: object
    table: AdTable
    arrivals: int
    time_s: float


@dataclass(frozen=True, slots=True)
class _Kept:
    response: bytes
    slots: NDArray[np.int64]  # [n]
    first_codes: NDArray[np.int64] | None  # of the ads' SIDs, [<= n]; None where the list has room for any ad
    arrivals: int
    time_s: float

    @property
    def size_bytes(self) -> int:
        codes_bytes = 0 if self.first_codes is None else self.first_codes.nbytes
        return OVERHEAD_BYTES + len(self.response) + self.slots.nbytes + codes_bytes


class ResultCache:
    """The latest answers of one policy over one catalogue, up to a number and a size; used by one thread."""

    def __init__(
        self, ttl_s: float, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make an empty cache.

        Args:
            ttl_s: How old an answer may be, counted from the start of its computation, in seconds.
            max_entries: Answers to keep; a further one takes the place of that which nobody asked for the longest.
            max_bytes: What all of them may take in memory, each estimated as its message, its numbers and
                `OVERHEAD_BYTES`; an answer that alone takes more is not kept.
            clock: Tells the time in seconds.
        """
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self.size_bytes = 0
        """What the kept answers take, as estimated."""
        self._policy: object = None
        self._table: AdTable | None = None
        self.hits = 0
        """Answers given."""
        self.stale = 0
        """Answers dropped when they were asked for, since they were too old or the catalogue had changed for them."""

    def __len__(self) -> int:
        return len(self._kept)

    def moment(self, policy: object, table: AdTable) -> Moment:
        """Return the moment to note before a computation whose answer is to be kept."""
        return Moment(policy, table, table.arrivals, self._clock())

    def find(self, key: bytes, policy: object, table: AdTable) -> generation_pb2.GenerateAdsResponse | None:
        """Return the answer to a question, as a message of the caller's own; None where it must be computed.

        Args:
            key: The question, by `request_key`.
            policy: What would compute the answer.
            table: The catalogue's ads at this moment.
        """
        if policy is not self._policy or table is not self._table:
            self._kept.clear()
            self.size_bytes = 0
            self._policy, self._table = policy, table
        kept = self._kept.get(key)
        if kept is None:
            return None
        if not self._is_good(kept, table):
            self._drop(key)
            self.stale += 1
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        response = generation_pb2.GenerateAdsResponse.FromString(kept.response)
        response.origin = generation_pb2.GenerateAdsResponse.ORIGIN_CACHED
        return response

    def keep(
        self,
        key: bytes,
        began: Moment,
        response: generation_pb2.GenerateAdsResponse,
        slots: Sequence[int],
        candidate_count: int,
    ) -> None:
        """Keep an answer; one of a policy or catalogue that is not the current one any more is left out.

        Args:
            key: The question, by `request_key`.
            began: The moment before the computation; the answer must be of its policy and table.
            response: The answer, with all its candidates.
            slots: The candidates' slots in the table.
            candidate_count: Candidates asked for.
        """
        if began.policy is not self._policy or began.table is not self._table:
            return
        if key in self._kept:
            self._drop(key)
        ads = np.array(slots, np.int64)
        kept = _Kept(
            response=response.SerializeToString(),
            slots=ads,
            first_codes=np.unique(began.table.sids(ads)[:, 0]) if len(ads) >= candidate_count else None,
            arrivals=began.arrivals,
            time_s=began.time_s,
        )
        self._kept[key] = kept
        self.size_bytes += kept.size_bytes
        while len(self._kept) > self._max_entries or self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        self.size_bytes -= self._kept.pop(key).size_bytes

    def _is_good(self, kept: _Kept, table: AdTable) -> bool:
        return (
            self._clock() - kept.time_s < self._ttl_s
            and bool(table.live(kept.slots).all())
            and not table.came_since(kept.arrivals, kept.first_codes)
        )
