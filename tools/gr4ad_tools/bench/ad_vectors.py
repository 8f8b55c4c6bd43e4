"""Catalogues as a tokeniser sees them: a vector and the business signals of each ad.

Shapes: N ads, D coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gr4ad_core.learning.data_folder import read_items
from gr4ad_core.sid.ad_content import AD_TYPES, render
from gr4ad_core.sid.business_code import CONVERSION_TYPES, BusinessSignals
from gr4ad_core.sid.text_encoder import TextEncoder
from numpy.typing import NDArray

from gr4ad_tools.codebook_fit import EMBEDDING_DIM, content_of

TOPICS = 512
SUBTOPICS = 16  # of each topic
SUBTOPIC_SPREAD = 0.7
CREATIVE_SPREAD = 0.7  # both relative to the distance of topics from the origin
TOPIC_SKEW = 0.8  # the r-th topic has a share of r to this power
CAMPAIGNS_EXPONENT = 2.5  # campaigns per creative: k of them with k to the minus this
MOST_CAMPAIGNS = 64
ACCOUNT_SKEW = 1.0
ADS_PER_ACCOUNT = 20
CREATIVES_PER_PRODUCT = 3
CONVERSION_SHARES = (0.4, 0.1, 0.3, 0.1, 0.1)
CHUNK = 65_536


@dataclass(frozen=True)
class AdVectors:
    """A catalogue.

    Attributes:
        vectors_ND: Content of each ad, float32.
        conversion_types_N: Numbers of `CONVERSION_TYPES`; nothing here depends on ad types, so all are alike.
        advertiser_ids: Account of each ad.
        product_ids: Product of each ad.
    """

    vectors_ND: NDArray[np.float32]
    conversion_types_N: NDArray[np.int64]
    advertiser_ids: Sequence[str]
    product_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.vectors_ND)

    def signals(self, rows: range) -> list[BusinessSignals]:
        """Return the business signals of some ads."""
        kinds = self.conversion_types_N[rows.start : rows.stop].tolist()
        return [
            BusinessSignals(CONVERSION_TYPES[kind], AD_TYPES[0], self.advertiser_ids[row], self.product_ids[row])
            for row, kind in zip(rows, kinds, strict=True)
        ]


def folder_catalogue(folder: Path, seed: int) -> AdVectors:
    """Return the ads of a data folder under the text encoder that is fitted to them.

    Raises:
        DataFolderError: The folder cannot be used.
    """
    items = read_items(folder)
    texts = [render(content_of(item)) for item in items]
    return AdVectors(
        vectors_ND=TextEncoder.fit(texts, EMBEDDING_DIM, seed).encode(texts),
        conversion_types_N=np.array([CONVERSION_TYPES.index(item.conversion_type) for item in items]),
        advertiser_ids=[item.advertiser_id for item in items],
        product_ids=[item.item_id for item in items],
    )


def generated_catalogue(n_ads: int, seed: int, dim: int = EMBEDDING_DIM) -> AdVectors:
    """Make a catalogue: clustered creatives, many of them in several campaigns, of accounts with heavy-tailed sizes.

    A creative's vector is a unit vector near its subtopic, which is near its topic. All its campaigns share the vector
    and differ in account or conversion type, so that content alone does not tell them apart.

    Args:
        n_ads: Ads N.
        seed: Of every random choice.
        dim: Coordinates D.
    """
    rng = np.random.default_rng(seed)
    campaigns_C = np.minimum(rng.zipf(CAMPAIGNS_EXPONENT, n_ads), MOST_CAMPAIGNS)
    n_creatives = int(np.searchsorted(campaigns_C.cumsum(), n_ads)) + 1
    creative_N = rng.permutation(np.repeat(np.arange(n_creatives), campaigns_C[:n_creatives])[:n_ads])

    centres_KD = _directions(rng, TOPICS, dim)[:, None] + SUBTOPIC_SPREAD * _directions(
        rng, TOPICS * SUBTOPICS, dim
    ).reshape(TOPICS, SUBTOPICS, dim)
    topic_C = _skewed(rng, TOPICS, TOPIC_SKEW, n_creatives)
    subtopic_C = rng.integers(SUBTOPICS, size=n_creatives)
    creatives_CD = np.empty((n_creatives, dim), dtype=np.float32)
    for start in range(0, n_creatives, CHUNK):
        rows = slice(start, min(start + CHUNK, n_creatives))
        creatives_CD[rows] = centres_KD[topic_C[rows], subtopic_C[rows]]
        creatives_CD[rows] += CREATIVE_SPREAD * _directions(rng, rows.stop - start, dim)
        creatives_CD[rows] /= np.linalg.norm(creatives_CD[rows], axis=1, keepdims=True)

    accounts_N = _skewed(rng, max(1, n_ads // ADS_PER_ACCOUNT), ACCOUNT_SKEW, n_ads)
    return AdVectors(
        vectors_ND=creatives_CD[creative_N],
        conversion_types_N=rng.choice(len(CONVERSION_TYPES), n_ads, p=CONVERSION_SHARES),
        advertiser_ids=[f"account-{account}" for account in accounts_N.tolist()],
        product_ids=[f"product-{creative // CREATIVES_PER_PRODUCT}" for creative in creative_N.tolist()],
    )


def _directions(rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = rng.standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _skewed(rng: np.random.Generator, kinds: int, exponent: float, count: int) -> NDArray[np.int64]:
    """Draw numbers below `kinds`, number r with a share of (r + 1) to the minus `exponent`."""
    share = np.arange(1, kinds + 1, dtype=np.float64) ** -exponent
    return np.searchsorted(share.cumsum() / share.sum(), rng.random(count))
