"""Codebooks small enough to fit in a moment."""

from __future__ import annotations

from pathlib import Path

from gr4ad_core.sid.ad_content import AdContent, render
from gr4ad_core.sid.codebook import Codebook, CodebookConfig, fit_codebook, save_codebook
from gr4ad_core.sid.text_encoder import TextEncoder

from tests.sid_assigner.suite import make_ads

# Id, codes per level, length of the vectors, whether it has a text encoder.
CODEBOOKS = (
    ("small", (8, 8, 64), 16, True),
    ("other", (4, 4, 32), 8, True),
    ("tiny", (2, 2, 4), 16, True),
    ("vectors-only", (4, 4, 16), 16, False),
)


def publish(root: Path) -> dict[str, Codebook]:
    """Fit the codebooks to ads like those of the tests and store them below `root`; return them by their ids."""
    contents = [AdContent(ad.title, ad.brand, tuple(ad.categories), "", ad.brand, "product") for ad in make_ads(160)]
    texts = [render(content) for content in contents]
    fitted = {}
    for codebook_id, level_sizes, dim, encodes in CODEBOOKS:
        encoder = TextEncoder.fit(texts, dim=dim, seed=5)
        config = CodebookConfig(level_sizes=level_sizes, embedding_dim=dim, seed=5)
        codebook = fit_codebook(
            encoder.encode(texts), config, encoder=encoder if encodes else None, codebook_id=codebook_id
        )
        save_codebook(codebook, root / "codebooks" / codebook_id)
        fitted[codebook_id] = codebook
    return fitted
