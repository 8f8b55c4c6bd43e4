"""A self-contained text encoder: hashed n-grams, TF-IDF, and a truncated SVD (latent semantic analysis).

It needs no downloaded weights and runs on the CPU. It is one of the plug-in kinds of method.md §1.1; a caller who has
better vectors sends those.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gr4ad_core.sid.text_features import FeatureHasher

HASH_BUCKETS = 1 << 18  # few collisions among the features of a million texts
MAX_FEATURES = 32_768  # the most frequent ones; bounds the saved projection
MIN_TEXTS = 2  # a feature of one text says nothing about others
MAX_FIT_TEXTS = 65_536  # a sample of this size fixes the leading directions
POWER_ITERATIONS = 4
OVERSAMPLING = 16
CHUNK = 4_096  # texts encoded at a time
# Coordinates are scaled by (singular value)^SPECTRUM_POWER: 1 lets a few broad topics drown the rest, 0 makes the ads
# of a small catalogue all equally unlike. On Amazon Beauty, users' next ads share a first code as often with 0.25 as
# with 0 (5.45 % of pairs) and hardly less often with 0.5 (5.16 %).
SPECTRUM_POWER = 0.25

_ARRAYS = {"columns": np.int64, "idf": np.float32, "projection": np.float32}


class TextEncoder:
    """Encodes texts as unit vectors whose inner products follow shared vocabulary and topics."""

    def __init__(self, columns: NDArray[np.int64], idf: NDArray[np.float32], projection: NDArray[np.float32]) -> None:
        """Use fitted arrays: hash buckets [F] in rising order, their idf [F], and the projection [F, D]."""
        self._columns = columns
        self._idf = idf
        self._projection = projection
        self._place_H = _places(columns)
        self._hasher = FeatureHasher(HASH_BUCKETS)

    @property
    def dim(self) -> int:
        """Length D of the vectors."""
        return int(self._projection.shape[1])

    @property
    def projection(self) -> NDArray[np.float32]:
        """The map from features to vectors, [F, D]."""
        return self._projection

    def with_projection(self, projection: NDArray[np.float32]) -> TextEncoder:
        """Return an encoder of the same features with another projection [F, D]."""
        return TextEncoder(self._columns, self._idf, projection)

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int, seed: int) -> TextEncoder:
        """Fit on texts; the same texts, size and seed give the same encoder.

        Raises:
            ValueError: There is no text or `dim` is not positive.
        """
        if not texts:
            raise ValueError("texts: empty: give at least one text to fit the encoder on")
        if dim < 1:
            raise ValueError(f"dim: {dim}: give a positive vector length")
        rng = np.random.default_rng(seed)
        if len(texts) > MAX_FIT_TEXTS:
            chosen = np.sort(rng.choice(len(texts), MAX_FIT_TEXTS, replace=False))
            texts = [texts[index] for index in chosen]
        counts_NH = FeatureHasher(HASH_BUCKETS).counts(texts)
        frequency_H = np.bincount(counts_NH.indices, minlength=HASH_BUCKETS)
        columns = _frequent(frequency_H, MIN_TEXTS if len(texts) >= MIN_TEXTS else 1)
        idf = (np.log((1 + len(texts)) / (1 + frequency_H[columns])) + 1).astype(np.float32)
        weights_NF = _tf_idf(counts_NH, _places(columns), idf)
        right_FD, singular_D = _leading_directions(weights_NF, dim, rng)
        # x @ V has coordinates of size σ; the exponent sets how much of that spread stays.
        used_D = singular_D > 1e-6 * singular_D.max(initial=0)
        scale_D = np.where(used_D, singular_D, np.inf) ** (SPECTRUM_POWER - 1)
        projection = np.zeros((len(columns), dim), dtype=np.float32)
        projection[:, : len(singular_D)] = right_FD * scale_D
        return cls(columns, idf, projection)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors [N, D].

        A text without any known feature gets a direction drawn from its own characters: arbitrary, but the same each
        time, and spread over the codes instead of piling up in one.
        """
        vectors_ND = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            vectors_ND[start : start + CHUNK] = self.weights(chunk) @ self._projection
        norms_N = np.linalg.norm(vectors_ND, axis=1)
        for row in np.flatnonzero(norms_N < 1e-6).tolist():
            seed = zlib.crc32(texts[row].encode("utf-8", "surrogatepass"))
            vectors_ND[row] = np.random.default_rng(seed).standard_normal(self.dim)
            norms_N[row] = np.linalg.norm(vectors_ND[row])
        vectors_ND /= norms_N[:, None]
        return vectors_ND

    def weights(self, texts: Sequence[str]) -> sparse.csr_array:
        """Return the weights of the texts' features, unit rows, float32 sparse [N, F]."""
        return _tf_idf(self._hasher.counts(texts), self._place_H, self._idf)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `from_arrays` needs."""
        return {"columns": self._columns, "idf": self._idf, "projection": self._projection}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TextEncoder:
        """Build the encoder that `arrays` came from.

        Raises:
            ValueError: An array is missing or its shape does not fit the others.
        """
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"encoder: {', '.join(missing)}: missing, save the encoder anew")
        columns, idf, projection = (np.asarray(arrays[name], dtype=dtype) for name, dtype in _ARRAYS.items())
        if columns.ndim != 1 or idf.shape != columns.shape or projection.shape[:1] != columns.shape:
            shapes = f"{columns.shape}, {idf.shape}, {projection.shape}"
            raise ValueError(f"encoder: shapes {shapes}: must be [F], [F], [F, D], save the encoder anew")
        return cls(columns, idf, projection)


def _frequent(frequency_H: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """Return the buckets met in at least `least` texts, the most frequent MAX_FEATURES of them, in rising order."""
    columns = np.flatnonzero(frequency_H >= least)
    if len(columns) > MAX_FEATURES:
        columns = columns[np.argsort(-frequency_H[columns], kind="stable")[:MAX_FEATURES]]
    return np.sort(columns).astype(np.int64)


def _places(columns_F: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the place of each bucket among the kept columns, −1 where it is not kept, [H]."""
    place_H = np.full(HASH_BUCKETS, -1, dtype=np.int32)
    place_H[columns_F] = np.arange(len(columns_F))
    return place_H


def _tf_idf(counts_NH: sparse.csr_array, place_H: NDArray[np.int32], idf_F: NDArray[np.float32]) -> sparse.csr_array:
    """Return unit rows of (1 + log count) · idf over the kept columns, float32 sparse [N, F]."""
    place = place_H[counts_NH.indices]
    known = place >= 0
    rows = np.repeat(np.arange(counts_NH.shape[0]), np.diff(counts_NH.indptr))[known]
    place = place[known]
    values = (1 + np.log(counts_NH.data[known])) * idf_F[place]
    norms = np.sqrt(np.bincount(rows, weights=values.astype(np.float64) ** 2, minlength=counts_NH.shape[0]))
    values = (values / norms[rows]).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=counts_NH.shape[0]))])
    return sparse.csr_array((values, place, indptr), shape=(counts_NH.shape[0], len(idf_F)))


def _leading_directions(
    weights_NF: sparse.csr_array, dim: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return right singular vectors [F, D'] and singular values [D'], the largest first, D' ≤ dim.

    Randomised SVD with power iterations (Halko, Martinsson and Tropp, 2011).
    """
    n_texts, n_features = weights_NF.shape
    rank = min(dim, n_texts, n_features)
    if rank == 0:
        return np.zeros((n_features, 0), dtype=np.float32), np.ones(1, dtype=np.float32)[:0]
    width = min(rank + OVERSAMPLING, n_texts, n_features)
    basis_NW = np.linalg.qr(weights_NF @ rng.standard_normal((n_features, width)).astype(np.float32))[0]
    transposed_FN = weights_NF.T.tocsr()
    for _ in range(POWER_ITERATIONS):
        basis_FW = np.linalg.qr(transposed_FN @ basis_NW)[0]
        basis_NW = np.linalg.qr(weights_NF @ basis_FW)[0]
    small_WF = (transposed_FN @ basis_NW).T
    _, singular, right_WF = np.linalg.svd(small_WF, full_matrices=False)
    right_FD = right_WF[:rank].T
    # The sign of a singular vector is free; fix it, so that every build of LAPACK gives the same encoder.
    peaks = right_FD[np.abs(right_FD).argmax(axis=0), np.arange(rank)]
    return (right_FD * np.where(peaks < 0, -1, 1)).astype(np.float32), singular[:rank].astype(np.float32)
