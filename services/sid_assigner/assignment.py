"""SIDs for a batch of ads under one codebook, beside those that are taken already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from gr4ad_core.sid.codebook import Codebook, CodebookFullError
from gr4ad_runtime import semconv
from gr4ad_runtime.errors import ResourceExhaustedError
from gr4ad_runtime.telemetry import meter
from numpy.typing import NDArray
from sqlalchemy import JSON, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import Ad
from sid_assigner.embeddings import Encoded

# One transaction at a time assigns SIDs: two that looked for free ones beside each other would often take the same.
ASSIGNMENT_LOCK = 0x67723461645F7369

_spilled = meter("sid_assigner").create_counter(
    semconv.METRIC_ADS_SPILLED, description="Ads whose nearest semantic prefix was full, under one that was not."
)

T = TypeVar("T")
Prefix = tuple[int, ...]


async def lock_assignment(session: AsyncSession) -> None:
    """Hold the right to assign SIDs to the end of the transaction; wait for it as long as the caller does."""
    await session.execute(text("SET LOCAL lock_timeout = 0"))
    await session.execute(text("SET LOCAL statement_timeout = 0"))
    await session.execute(select(func.pg_advisory_xact_lock(ASSIGNMENT_LOCK)))


async def assign_sids(
    session: AsyncSession, codebook: Codebook, ads: Sequence[Ad], encoded: Encoded
) -> NDArray[np.int64]:
    """Return SIDs [N, T] that nobody has, as far as this transaction can see.

    Raises:
        ResourceExhaustedError: The codebook has no free SID left.
    """
    taken = TakenCodes(session, codebook.codebook_id)
    await taken.load({tuple(codes) for codes in encoded.semantic_codes_NT.tolist()})
    signals = [ad.signals for ad in ads]
    try:
        sids_NT = await in_thread(
            partial(codebook.assign, encoded.vectors_ND, signals, taken, encoded.semantic_codes_NT)
        )
    except CodebookFullError as error:
        remedy = "fit a codebook with more codes and activate it"
        raise ResourceExhaustedError("codebook_id", f"{codebook.codebook_id!r}: {error}", remedy) from error
    spilled = int((sids_NT[:, :-1] != encoded.semantic_codes_NT).any(axis=1).sum())
    if spilled:
        _spilled.add(spilled, {semconv.CODEBOOK_ID: codebook.codebook_id})
    return sids_NT


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
        wanted = list(prefixes)
        parameters = {"codebook_id": self._codebook_id, "prefixes": [{"codes": prefix} for prefix in wanted]}
        self._taken.update((prefix, set()) for prefix in wanted)
        for number, business_codes in await self._session.execute(TAKEN, parameters):
            self._taken[wanted[number - 1]].update(business_codes)

    def __call__(self, prefix: Prefix) -> set[int]:
        """Return the business codes in use under `prefix`."""
        key = tuple(int(code) for code in prefix)
        if key not in self._taken:
            asyncio.run_coroutine_threadsafe(self.load([key]), self._loop).result()
        return self._taken[key]


TAKEN = text(
    """
    SELECT prefix.number, array_agg(ad_sid.business_code)
    FROM ROWS FROM (json_to_recordset(:prefixes) AS (codes integer[])) WITH ORDINALITY AS prefix (codes, number)
    JOIN sid.ad_sid ON ad_sid.semantic_codes = prefix.codes
    WHERE ad_sid.codebook_id = :codebook_id
    GROUP BY prefix.number
    """
).bindparams(bindparam("prefixes", type_=JSON))


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread and wait for its end even when cancelled: it may be using the session."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise
