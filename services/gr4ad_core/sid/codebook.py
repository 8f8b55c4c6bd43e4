"""MGMR RQ-KMeans: a codebook that turns ads into semantic IDs (method.md §1.2).

    s_t = argmin_j ‖r_t − c_t,j‖²,   r_1 = z,  r_(t+1) = r_t − c_t,s_t                      semantic levels t < T
    s_T = business code of (conversion type, account, product), moved to a free one         last level

z is an ad's content vector, or what the co-occurrence head makes of it where the codebook has one.

Shapes: N ads, D coordinates, T levels, V_t codes of level t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.sid.ad_content import AdContent, render
from gr4ad_core.sid.balanced_kmeans import SAMPLE_PER_CLUSTER, balanced_centroids, sample
from gr4ad_core.sid.business_code import BusinessLevel, BusinessSignals
from gr4ad_core.sid.codebook_config import CodebookConfig, default_level_sizes
from gr4ad_core.sid.codebook_file import ARRAYS_FILE, MANIFEST_FILE, REFIT, CodebookFileError, read_folder, write_folder
from gr4ad_core.sid.cooccurrence_head import CooccurrenceHead
from gr4ad_core.sid.residual_search import nearest_prefixes, quantise
from gr4ad_core.sid.text_encoder import TextEncoder

__all__ = [
    "Codebook",
    "CodebookConfig",
    "CodebookFileError",
    "CodebookFullError",
    "FitErrors",
    "default_level_sizes",
    "fit_codebook",
    "load_codebook",
    "save_codebook",
]

FIRST_ALTERNATIVES = 8  # prefixes looked up when the nearest one is full; doubled until one has room


@dataclass(frozen=True, slots=True)
class FitErrors:
    """What the semantic levels left over of the ads that a codebook was fitted to, as squared lengths.

    Attributes:
        mean: On average.
        p99: Of all but the worst hundredth, at most.
    """

    mean: float
    p99: float


class CodebookFullError(Exception):
    """Every SID of a codebook is taken."""


class Codebook:
    """A fitted codebook."""

    def __init__(
        self,
        codebook_id: str,
        levels: Sequence[NDArray[np.float32]],
        business: BusinessLevel,
        encoder: TextEncoder | None,
        head: CooccurrenceHead | None = None,
    ) -> None:
        """Use fitted levels.

        Args:
            codebook_id: Name in the artifact store.
            levels: Centroids [V_t, D] of the semantic levels, coarse to fine.
            business: The business level.
            encoder: Encoder of the content vectors; None where callers send them.
            head: Moves content vectors to the vectors that the levels were fitted on; None where they are the same.
        """
        self.codebook_id = codebook_id
        self.encoder = encoder
        self.head = head
        self.holdout_events: int | None = None
        """Last events of every user that its vectors do not know; None where they say content alone."""
        self.fit_errors: FitErrors | None = None
        """What its levels left over when it was fitted; None where that is not known."""
        self._levels = tuple(levels)
        self.business = business
        """The last level."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of every level, coarse to fine, the business level last."""
        return (*map(len, self._levels), self.business.size)

    @property
    def embedding_dim(self) -> int:
        """Length D of content vectors."""
        return int(self._levels[0].shape[1])

    @property
    def levels(self) -> tuple[NDArray[np.float32], ...]:
        """Centroids [V_t, D] of the semantic levels, coarse to fine."""
        return self._levels

    def encode_ads(self, ads: Sequence[AdContent]) -> NDArray[np.float32]:
        """Return the content vectors [N, D] of ads.

        Raises:
            ValueError: The codebook has no encoder, or an ad type is unknown.
        """
        if self.encoder is None:
            problem = f"codebook {self.codebook_id!r} has no text encoder"
            raise ValueError(f"embedding: empty: {problem}, send vectors of {self.embedding_dim} numbers")
        return self.encoder.encode([render(ad) for ad in ads])

    def ad_vectors(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the levels quantise, z of content vectors [N, D], float32 [N, D].

        Raises:
            ValueError: The vectors have the wrong length or a number that is not finite.
        """
        vectors_ND = check_embeddings(embeddings, self.embedding_dim)
        return vectors_ND if self.head is None else self.head(vectors_ND)

    def quantise(self, embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the semantic codes of content vectors [N, D], int64 [N, T-1].

        Raises:
            ValueError: The vectors have the wrong length or a number that is not finite.
        """
        return quantise(self._levels, self.ad_vectors(embeddings))

    def errors(self, embeddings: NDArray[np.float32], semantic_codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the squared length of what semantic codes leave over of each ad, float32 [N].

        Args:
            embeddings: Content vectors [N, D].
            semantic_codes: Codes [N, T-1], such as `quantise` returns.

        Raises:
            ValueError: The vectors have the wrong length or a number that is not finite.
        """
        residual_ND = self.ad_vectors(embeddings)
        for depth, centroids_VD in enumerate(self._levels):
            residual_ND = residual_ND - centroids_VD[semantic_codes[:, depth]]
        squares_N: NDArray[np.float32] = np.einsum("nd,nd->n", residual_ND, residual_ND)
        return squares_N

    def nearest_codes(self, embeddings: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        """Return semantic codes of content vectors [N, D] and their alternatives, the nearest first, int64 [N, n, T-1].

        Found by a beam of width n; where there are fewer than n prefixes, all of them are returned.

        Raises:
            ValueError: The vectors have the wrong length or a number that is not finite, or `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"n: {n}: ask for at least one prefix")
        return nearest_prefixes(self._levels, self.ad_vectors(embeddings), n)

    def assign(
        self,
        embeddings: NDArray[np.float32],
        signals: Sequence[BusinessSignals],
        taken: Callable[[tuple[int, ...]], set[int]],
        semantic_codes: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Return a free SID for each ad, int64 [N, T], no two alike.

        An ad tries the codes of its nearest semantic prefix in the order of `BusinessLevel.probe_codes`, then the
        next-nearest prefixes. Ads are served in the order given.

        Args:
            embeddings: Content vectors [N, D].
            signals: Signals of each ad.
            taken: Tells the business codes in use under a semantic prefix; asked once a prefix.
            semantic_codes: What `quantise` returns for the embeddings, if it has been asked already.

        Raises:
            ValueError: A vector or a signal is unusable, or the lengths differ.
            CodebookFullError: Every SID of the codebook is taken.
        """
        embeddings = check_embeddings(embeddings, self.embedding_dim)
        if len(signals) != len(embeddings):
            raise ValueError(f"signals: {len(signals)} for {len(embeddings)} vectors: give one for each vector")
        sids_NT = np.empty((len(embeddings), len(self.level_sizes)), dtype=np.int64)
        sids_NT[:, :-1] = self.quantise(embeddings) if semantic_codes is None else semantic_codes
        used = _UsedCodes(self.business, taken)
        for row, prefix in enumerate(map(tuple, sids_NT[:, :-1].tolist())):
            code = used.take(prefix, signals[row])
            if code is None:
                prefix, code = self._spill(self.ad_vectors(embeddings[row : row + 1]), signals[row], used)
                sids_NT[row, :-1] = prefix
            sids_NT[row, -1] = code
        return sids_NT

    def _spill(
        self, vector_1D: NDArray[np.float32], signals: BusinessSignals, used: _UsedCodes
    ) -> tuple[tuple[int, ...], int]:
        """Return the nearest semantic prefix that has room, and a code under it."""
        n_prefixes = math.prod(map(len, self._levels))
        n, tried = FIRST_ALTERNATIVES, set[tuple[int, ...]]()
        while True:
            for prefix in map(tuple, nearest_prefixes(self._levels, vector_1D, n)[0].tolist()):
                if prefix in tried:
                    continue
                tried.add(prefix)
                code = used.take(prefix, signals)
                if code is not None:
                    return prefix, code
            if n >= n_prefixes:
                total = n_prefixes * self.business.size
                raise CodebookFullError(f"all {total} SIDs of codebook {self.codebook_id!r} are taken")
            n *= 2


class _UsedCodes:
    """Business codes in use by prefix: those known before, and those given since."""

    def __init__(self, business: BusinessLevel, taken: Callable[[tuple[int, ...]], set[int]]) -> None:
        self._business = business
        self._taken = taken
        self._used: dict[tuple[int, ...], set[int]] = {}

    def take(self, prefix: tuple[int, ...], signals: BusinessSignals) -> int | None:
        """Return the first free code under `prefix` in probing order and mark it, or None where there is none."""
        if prefix not in self._used:
            self._used[prefix] = set(self._taken(prefix))
        used = self._used[prefix]
        for code in self._business.probe_codes(signals):
            if code not in used:
                used.add(code)
                return code
        return None


def fit_codebook(
    embeddings: NDArray[np.float32],
    config: CodebookConfig,
    encoder: TextEncoder | None = None,
    codebook_id: str = "codebook",
    head: CooccurrenceHead | None = None,
    keep: Callable[[str, Callable[[], NDArray[np.float32]]], NDArray[np.float32]] = lambda name, make: make(),
) -> Codebook:
    """Fit a codebook to content vectors [N, D]; the same vectors and config give the same bytes.

    Args:
        embeddings: Content vectors of the ads known so far.
        config: Sizes, seed and iterations.
        encoder: Where the vectors came from, to be saved with the codebook; None where callers send vectors.
        codebook_id: Name in the artifact store.
        head: To be saved with the codebook, too: the levels are fitted to what it makes of the vectors.
        keep: Called with the name of each level and what fits it; returns its centroids, made now or at an earlier
            attempt.

    Raises:
        ValueError: There is no vector, one has the wrong length or a number that is not finite, or the encoder's or
            the head's vectors have another length.
    """
    if encoder is not None and encoder.dim != config.embedding_dim:
        raise ValueError(f"encoder.dim: {encoder.dim}: must be embedding_dim {config.embedding_dim}, fit it to that")
    if head is not None and head.dim != config.embedding_dim:
        raise ValueError(f"head.dim: {head.dim}: must be embedding_dim {config.embedding_dim}, train it so")
    residual_ND = check_embeddings(embeddings, config.embedding_dim)
    if not len(residual_ND):
        raise ValueError("embeddings: empty: give at least one vector to fit the codebook on")
    residual_ND = sample(
        residual_ND, SAMPLE_PER_CLUSTER * max(config.level_sizes[:-1]), np.random.default_rng(config.seed)
    )
    if head is not None:
        residual_ND = head(residual_ND)
    levels: list[NDArray[np.float32]] = []
    for depth, size in enumerate(config.level_sizes[:-1]):
        centroids_VD = keep(
            f"level{depth}",
            partial(balanced_centroids, residual_ND, size, config.seed + depth, config.iterations),
        )
        # What is left over must be what `quantise` leaves, hence the nearest centroid and not the balanced label.
        residual_ND = residual_ND - centroids_VD[quantise((centroids_VD,), residual_ND)[:, 0]]
        levels.append(centroids_VD)
    codebook = Codebook(codebook_id, levels, config.business, encoder, head)
    squares_N = np.einsum("nd,nd->n", residual_ND, residual_ND)
    codebook.fit_errors = FitErrors(float(squares_N.mean()), float(np.quantile(squares_N, 0.99)))
    return codebook


def check_embeddings(embeddings: NDArray[np.float32], embedding_dim: int) -> NDArray[np.float32]:
    """Return vectors as contiguous float32 [N, D].

    Raises:
        ValueError: The vectors have the wrong length or a number that is not finite; names the first one.
    """
    vectors_ND = np.ascontiguousarray(embeddings, dtype=np.float32)
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != embedding_dim:
        raise ValueError(f"embeddings: shape {vectors_ND.shape}: give vectors of {embedding_dim} numbers, [N, D]")
    bad = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
    if bad.size:
        at = int(np.flatnonzero(~np.isfinite(vectors_ND[bad[0]]))[0])
        raise ValueError(f"embeddings[{bad[0]}][{at}]: {vectors_ND[bad[0], at]}: give finite numbers")
    return vectors_ND


def save_codebook(codebook: Codebook, folder: Path | str) -> None:
    """Write `codebook.npz` and `manifest.json` into a folder; the same codebook gives the same bytes."""
    arrays: dict[str, NDArray[Any]] = {f"level{depth}": level for depth, level in enumerate(codebook.levels)}
    if codebook.head is not None:
        arrays |= {f"head.{name}": array for name, array in codebook.head.arrays().items()}
    if codebook.encoder is not None:
        arrays |= {f"encoder.{name}": array for name, array in codebook.encoder.arrays().items()}
    manifest = {
        "codebook_id": codebook.codebook_id,
        "level_sizes": list(codebook.level_sizes),
        "embedding_dim": codebook.embedding_dim,
        "business_signals": list(codebook.business.signals),
        "holdout_events": codebook.holdout_events,
        "fit_errors": None if codebook.fit_errors is None else asdict(codebook.fit_errors),
    }
    write_folder(Path(folder), manifest, arrays)


def load_codebook(folder: Path | str) -> Codebook:
    """Read a codebook that `save_codebook` wrote.

    Raises:
        CodebookFileError: A file is missing, damaged, of another format, or not the one the manifest was made for.
    """
    manifest, arrays = read_folder(Path(folder))
    path = str(Path(folder) / ARRAYS_FILE)
    sizes, dim = manifest["level_sizes"], manifest["embedding_dim"]
    levels = []
    for depth, size in enumerate(sizes[:-1]):
        centroids_VD = arrays.get(f"level{depth}", np.empty(0))
        if centroids_VD.shape != (size, dim):
            raise CodebookFileError(path, f"level{depth} of shape {(size, dim)}", f"{centroids_VD.shape}", REFIT)
        if not np.isfinite(centroids_VD).all():
            raise CodebookFileError(path, f"finite numbers in level{depth}", "NaN or infinity", REFIT)
        levels.append(np.ascontiguousarray(centroids_VD, dtype=np.float32))
    try:
        parts = _part("encoder.", arrays)
        encoder = TextEncoder.from_arrays(parts) if parts else None
        parts = _part("head.", arrays)
        head = CooccurrenceHead.from_arrays(parts) if parts else None
    except ValueError as error:
        raise CodebookFileError(path, "the arrays of an encoder and a head", str(error), REFIT) from error
    try:
        business = BusinessLevel(sizes[-1], tuple(manifest["business_signals"]))
    except ValueError as error:
        raise CodebookFileError(str(Path(folder) / MANIFEST_FILE), "a business level", str(error), REFIT) from error
    codebook = Codebook(manifest["codebook_id"], levels, business, encoder, head)
    codebook.holdout_events = manifest.get("holdout_events")
    errors = manifest.get("fit_errors")
    codebook.fit_errors = None if errors is None else FitErrors(**errors)
    return codebook


def _part(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
