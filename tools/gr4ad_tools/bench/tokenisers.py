"""The tokenisers that `gr4ad bench codebook` compares, behind one interface.

Shapes: N ads, D coordinates, T levels, V_t codes of level t.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from gr4ad_core.sid.codebook import CodebookConfig, fit_codebook
from gr4ad_core.sid.nearest_centroids import nearest
from gr4ad_core.sid.residual_search import quantise
from numpy.typing import NDArray
from scipy import sparse

from gr4ad_tools.bench.ad_vectors import AdVectors

LLOYD_SAMPLE = 64  # points per cluster, as balanced k-means takes
LLOYD_ITERATIONS = 12


class Tokeniser(Protocol):
    """Turns ads into SIDs."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of every level."""

    def fit(self, ads: AdVectors, seed: int) -> None:
        """Learn from a catalogue."""

    def assign(self, ads: AdVectors, rows: range) -> NDArray[np.int64]:
        """Return the SIDs of some ads, int64 [rows, T]."""


class Mgmr:
    """Our own: balanced residual k-means, and a business level in which no two ads share a code."""

    def __init__(self, level_sizes: tuple[int, ...]) -> None:
        """Choose the sizes; the last level is the business level."""
        self.level_sizes = level_sizes
        self._taken: dict[tuple[int, ...], set[int]] = defaultdict(set)

    def fit(self, ads: AdVectors, seed: int) -> None:
        """Fit the codebook."""
        config = CodebookConfig(level_sizes=self.level_sizes, embedding_dim=ads.vectors_ND.shape[1], seed=seed)
        self._codebook = fit_codebook(ads.vectors_ND, config)

    def assign(self, ads: AdVectors, rows: range) -> NDArray[np.int64]:
        """Return free SIDs, beside all that were given before."""
        vectors_ND = ads.vectors_ND[rows.start : rows.stop]
        sids_NT = self._codebook.assign(vectors_ND, ads.signals(rows), lambda prefix: self._taken.get(prefix, set()))
        for *prefix, code in sids_NT.tolist():
            self._taken[tuple(prefix)].add(code)
        return sids_NT


class RqKmeans:
    """Plain residual k-means with equal levels: Lloyd's iterations, nearest centroid, no business level."""

    def __init__(self, level_sizes: tuple[int, ...]) -> None:
        """Choose the sizes."""
        self.level_sizes = level_sizes

    def fit(self, ads: AdVectors, seed: int) -> None:
        """Fit the levels one after the other."""
        self._levels: list[NDArray[np.float32]] = []
        residual_ND = ads.vectors_ND
        for depth, size in enumerate(self.level_sizes):
            centroids_VD = lloyd(residual_ND, size, seed + depth)
            self._levels.append(centroids_VD)
            residual_ND = residual_ND - centroids_VD[quantise((centroids_VD,), residual_ND)[:, 0]]

    def assign(self, ads: AdVectors, rows: range) -> NDArray[np.int64]:
        """Return the nearest codes."""
        return quantise(self._levels, ads.vectors_ND[rows.start : rows.stop])


class LearnedRq:
    """RQ-VAE with equal levels."""

    def __init__(self, level_sizes: tuple[int, ...]) -> None:
        """Choose the sizes."""
        self.level_sizes = level_sizes

    def fit(self, ads: AdVectors, seed: int) -> None:
        """Train the autoencoder."""
        from gr4ad_tools.bench.rq_vae import fit_rq_vae  # torch's memory is no part of the others

        self._model = fit_rq_vae(ads.vectors_ND, self.level_sizes, seed)

    def assign(self, ads: AdVectors, rows: range) -> NDArray[np.int64]:
        """Return the codes of the nearest latents."""
        return self._model.sids(ads.vectors_ND[rows.start : rows.stop])


class Hashing:
    """A hash of the ad's number: no meaning, and few collisions."""

    def __init__(self, level_sizes: tuple[int, ...]) -> None:
        """Choose the sizes."""
        self.level_sizes = level_sizes

    def fit(self, ads: AdVectors, seed: int) -> None:
        """Learn nothing."""

    def assign(self, ads: AdVectors, rows: range) -> NDArray[np.int64]:
        """Return the digits of each hash."""
        total = math.prod(self.level_sizes)
        digests = (hashlib.blake2b(str(row).encode(), digest_size=8).digest() for row in rows)
        numbers = np.array([int.from_bytes(digest, "big") % total for digest in digests], dtype=np.int64)
        return np.stack(np.unravel_index(numbers, self.level_sizes), axis=1)


TOKENISERS: dict[str, Callable[[tuple[int, ...]], Tokeniser]] = {
    "mgmr": Mgmr,
    "rq_equal": RqKmeans,
    "rqvae": LearnedRq,
    "hash": Hashing,
}


def equal_sizes(level_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return as many equal levels whose product is that of the given ones, or just above."""
    root = round(math.prod(level_sizes) ** (1.0 / len(level_sizes)))
    while root ** len(level_sizes) < math.prod(level_sizes):
        root += 1
    return (root,) * len(level_sizes)


def lloyd(points_ND: NDArray[np.float32], k: int, seed: int) -> NDArray[np.float32]:
    """Return k centroids [k, D] of plain k-means on a sample; an empty cluster keeps its centroid."""
    rng = np.random.default_rng(seed)
    size = min(len(points_ND), LLOYD_SAMPLE * k)
    sample_SD = np.asarray(points_ND[np.sort(rng.choice(len(points_ND), size, replace=False))])
    centroids_KD = sample_SD[rng.choice(size, k, replace=size < k)]
    for _ in range(LLOYD_ITERATIONS):
        labels_S = nearest(sample_SD, centroids_KD, 1)[0][:, 0]
        sizes_K = np.bincount(labels_S, minlength=k)
        members_KS = sparse.csr_array((np.ones(size, dtype=np.float32), (labels_S, np.arange(size))), shape=(k, size))
        means_KD = (members_KS @ sample_SD) / np.maximum(sizes_K, 1)[:, None]
        centroids_KD = np.where(sizes_K[:, None] > 0, means_KD, centroids_KD).astype(np.float32)
    return centroids_KD
