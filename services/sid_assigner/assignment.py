"""SIDs for a batch of ads under one codebook, beside those that are taken already."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from gr4ad_core.sid.codebook import Codebook, CodebookFullError
from gr4ad_runtime.errors import ResourceExhaustedError
from numpy.typing import NDArray
from sqlalchemy import ARRAY, Integer, Text, bindparam, column, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import Ad
from sid_assigner.models import AdSidRow

# Writers of ads share this advisory lock of the database. One that met another's SID holds it alone the next time, and
# so does the activation of a codebook.
ASSIGNMENT_LOCK = 0x67723461645F7369

T = TypeVar("T")
Prefix = tuple[int, ...]


async def lock_assignment(session: AsyncSession, *, alone: bool) -> None:
    """Hold the right to assign SIDs to the end of the transaction; `alone` keeps every other writer of ads out."""
    lock = func.pg_advisory_xact_lock if alone else func.pg_advisory_xact_lock_shared
    await session.execute(select(lock(ASSIGNMENT_LOCK)))


async def assign_sids(
    session: AsyncSession, codebook: Codebook, ads: Sequence[Ad], vectors_ND: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return SIDs [N, T] that nobody has, as far as this transaction can see.

    Raises:
        ResourceExhaustedError: The codebook has no free SID left.
    """
    taken = TakenCodes(session, codebook.codebook_id)
    prefixes = await in_thread(lambda: np.unique(codebook.quantise(vectors_ND), axis=0))
    await taken.load(tuple(row) for row in prefixes.tolist())
    try:
        return await in_thread(lambda: codebook.assign(vectors_ND, [ad.signals for ad in ads], taken))
    except CodebookFullError as error:
        remedy = "fit a codebook with more codes and activate it"
        raise ResourceExhaustedError("codebook_id", f"{codebook.codebook_id!r}: {error}", remedy) from error


class TakenCodes:
    """Business codes in use under semantic prefixes, read by the prefix.

    It is called in the thread that assigns. What was not loaded before is read then, by the event loop, which does
    nothing else with the session meanwhile.
    """

    def __init__(self, session: AsyncSession, codebook_id: str) -> None:
        """Read by `session`, whose event loop must be the running one."""
        self._session = session
        self._codebook_id = codebook_id
        self._loop = asyncio.get_running_loop()
        self._taken: dict[Prefix, set[int]] = {}

    async def load(self, prefixes: Iterable[Prefix]) -> None:
        """Read the codes under `prefixes` in one query."""
        found: dict[Prefix, set[int]] = defaultdict(set)
        wanted = list(prefixes)
        for semantic_codes, business_code in await self._session.execute(
            TAKEN, {"codebook_id": self._codebook_id, "prefixes": [array_literal(prefix) for prefix in wanted]}
        ):
            found[tuple(semantic_codes)].add(business_code)
        for prefix in wanted:
            self._taken[prefix] = found[prefix]

    def __call__(self, prefix: Prefix) -> set[int]:
        """Return the business codes in use under `prefix`."""
        key = tuple(int(code) for code in prefix)
        if key not in self._taken:
            asyncio.run_coroutine_threadsafe(self.load([key]), self._loop).result()
        return self._taken[key]


# PostgreSQL has no array whose elements are arrays, so the prefixes travel as text.
_prefix = func.unnest(bindparam("prefixes", type_=ARRAY(Text))).table_valued(column("codes", Text)).alias("prefix")
TAKEN = (
    select(AdSidRow.semantic_codes, AdSidRow.business_code)
    .join(_prefix, AdSidRow.semantic_codes == _prefix.c.codes.cast(ARRAY(Integer)))
    .where(AdSidRow.codebook_id == bindparam("codebook_id"))
)


def array_literal(codes: Iterable[int]) -> str:
    """Write codes as PostgreSQL reads an array: `{1,2}`."""
    return "{" + ",".join(str(int(code)) for code in codes) + "}"


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread and wait for its end even when cancelled: it may be using the session."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise
