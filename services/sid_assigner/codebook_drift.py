"""How the newest ads fit a codebook: what its levels leave over, and whether there is room where they belong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gr4ad_core.sid.codebook import Codebook
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ad_rows import ad_of
from sid_assigner.ads import Ad
from sid_assigner.assignment import TakenCodes, in_thread
from sid_assigner.embeddings import encode
from sid_assigner.models import AdRow, AdSidRow, CatalogChangeRow

CHANGES_PER_AD = 10  # of the feed's newest changes as many are looked through for each ad wanted


@dataclass(frozen=True, slots=True)
class Drift:
    """The fields of `GetCodebookDriftResponse`."""

    ads: int
    error_ratio: float | None = None
    far_share: float | None = None
    spilled_share: float | None = None
    fullest_prefix: float | None = None


async def measure_drift(session: AsyncSession, codebook: Codebook, sample_size: int) -> Drift:
    """Look at the newest ads, of the latest changes of the feed.

    Raises:
        FailedPreconditionError: An ad has no vector, and the codebook no text encoder.
    """
    changes = (
        select(CatalogChangeRow.ad_id, CatalogChangeRow.change_time)
        .order_by(CatalogChangeRow.seq.desc())
        .limit(CHANGES_PER_AD * sample_size)
        .subquery()
    )
    rows = (
        await session.execute(
            select(AdRow, AdSidRow.semantic_codes)
            .join(changes, (changes.c.ad_id == AdRow.ad_id) & (changes.c.change_time == AdRow.create_time))
            .join(AdSidRow, AdSidRow.ad_id == AdRow.ad_id)
            .where(AdSidRow.codebook_id == codebook.codebook_id)
            .order_by(AdRow.create_time.desc(), AdRow.ad_id)
            .limit(sample_size)
        )
    ).all()
    if not rows:
        return Drift(0)
    ads: list[Ad] = [ad_of(row.AdRow) for row in rows]
    given_NT = np.array([row.semantic_codes for row in rows], dtype=np.int64)
    encoded = await in_thread(lambda: encode(codebook, ads))
    spilled_share = float((given_NT != encoded.semantic_codes_NT).any(axis=1).mean())
    prefixes = {tuple(codes) for codes in given_NT.tolist()}
    taken = TakenCodes(session, codebook.codebook_id)
    await taken.load(prefixes)
    fullest = max(len(taken(prefix)) for prefix in prefixes) / codebook.level_sizes[-1]
    if codebook.fit_errors is None:
        return Drift(len(ads), None, None, spilled_share, fullest)
    errors_N = await in_thread(lambda: codebook.errors(encoded.vectors_ND, encoded.semantic_codes_NT))
    fit = codebook.fit_errors
    ratio = float(errors_N.mean()) / fit.mean if fit.mean > 0.0 else None
    return Drift(len(ads), ratio, float((errors_N > fit.p99).mean()), spilled_share, fullest)
