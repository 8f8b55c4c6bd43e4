"""MGMR RQ-KMeans: a codebook that turns ads into semantic IDs (method.md §1.2).

    s_t = argmin_j ‖r_t − c_t,j‖² + price_t,j,    r_1 = x,  r_(t+1) = r_t − c_t,s_t        semantic levels t < T
    s_T = business code of (conversion type, advertiser, product), moved to a free one      last level

Shapes: N ads, D coordinates, T levels, V_t codes of level t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.sid.ad_content import AdContent, render
from gr4ad_core.sid.balanced_kmeans import balanced_kmeans
from gr4ad_core.sid.business_code import BusinessSignals, probe_codes
from gr4ad_core.sid.codebook_file import ARRAYS_FILE, REFIT, CodebookFileError, read_folder, write_folder
from gr4ad_core.sid.residual_search import SemanticLevel, nearest_prefixes, quantise
from gr4ad_core.sid.text_encoder import TextEncoder

__all__ = [
    "Codebook",
    "CodebookConfig",
    "CodebookFileError",
    "CodebookFullError",
    "default_level_sizes",
    "fit_codebook",
    "load_codebook",
    "save_codebook",
]

FIRST_ALTERNATIVES = 8  # prefixes looked up when the nearest one is full; doubled until one has room


class CodebookFullError(Exception):
    """Every SID of a codebook is taken."""


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Describes a codebook to fit."""

    level_sizes: tuple[int, ...]
    """Codes V_t of every level, coarse to fine; the last is the business level."""
    embedding_dim: int = 128
    """Length D of the vectors that it quantises."""
    seed: int = 0
    """Of the sampling and the first centroids."""
    iterations: int = 15
    """Iterations of balanced k-means a level."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A field is out of range.
        """
        if len(self.level_sizes) < 2 or min(self.level_sizes) < 1:
            remedy = "give a positive size for each of two or more levels, the last one for business codes"
            raise ValueError(f"level_sizes: {self.level_sizes}: {remedy}")
        for name in ("embedding_dim", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}: give a positive number")


def default_level_sizes(n_ads: int) -> tuple[int, int, int]:
    """Return level sizes for a catalogue of `n_ads` ads: shrinking with depth, powers of two.

    About a dozen ads share a code of the first level, and semantic prefixes outnumber ads by about 20, so that a prefix
    rarely holds more than a few different creatives; 64 business codes leave 8 to each conversion type.

    Raises:
        ValueError: `n_ads` is not positive.
    """
    if n_ads < 1:
        raise ValueError(f"n_ads: {n_ads}: give the number of ads to expect, at least one")
    first = min(max(1 << (max(n_ads // 12, 1) - 1).bit_length(), 64), 16_384)
    second = min(max(1 << (-(-20 * n_ads // first) - 1).bit_length(), 64), first)
    return first, second, min(64, second)


class Codebook:
    """A fitted codebook."""

    def __init__(
        self, codebook_id: str, levels: Sequence[SemanticLevel], business_size: int, encoder: TextEncoder | None = None
    ) -> None:
        """Use fitted levels.

        Args:
            codebook_id: Name in the artifact store.
            levels: Semantic levels, coarse to fine.
            business_size: Codes of the business level.
            encoder: Encoder of the vectors that the levels were fitted on; None where callers send vectors.
        """
        self.codebook_id = codebook_id
        self.encoder = encoder
        self._levels = tuple(levels)
        self._business_size = business_size

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of every level, coarse to fine, the business level last."""
        return (*(len(level.prices) for level in self._levels), self._business_size)

    @property
    def embedding_dim(self) -> int:
        """Length D of the vectors that it quantises."""
        return int(self._levels[0].centroids.shape[1])

    @property
    def levels(self) -> tuple[SemanticLevel, ...]:
        """Semantic levels, coarse to fine."""
        return self._levels

    def encode_ads(self, ads: Sequence[AdContent]) -> NDArray[np.float32]:
        """Return the vectors [N, D] of ads from their content.

        Raises:
            ValueError: The codebook has no encoder, or an ad type is unknown.
        """
        if self.encoder is None:
            problem = f"codebook {self.codebook_id!r} has no text encoder"
            raise ValueError(f"embedding: empty: {problem}, send vectors of {self.embedding_dim} numbers")
        return self.encoder.encode([render(ad) for ad in ads])

    def quantise(self, embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the semantic codes of vectors [N, D], int64 [N, T-1].

        Raises:
            ValueError: The vectors have the wrong length or a number that is not finite.
        """
        return quantise(self._levels, check_embeddings(embeddings, self.embedding_dim))

    def nearest_codes(self, embeddings: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        """Return semantic codes of vectors [N, D] and their alternatives, the cheapest first, int64 [N, n, T-1].

        The search keeps the n cheapest prefixes a level. Where there are fewer than n prefixes, it returns them all.

        Raises:
            ValueError: The vectors have the wrong length or a number that is not finite, or `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"n: {n}: ask for at least one prefix")
        return nearest_prefixes(self._levels, check_embeddings(embeddings, self.embedding_dim), n)

    def assign(
        self,
        embeddings: NDArray[np.float32],
        signals: Sequence[BusinessSignals],
        taken: Callable[[tuple[int, ...]], set[int]],
    ) -> NDArray[np.int64]:
        """Return a free SID for each ad, int64 [N, T], no two alike.

        An ad tries the codes of its nearest semantic prefix in the order of `probe_codes`, then the next-nearest
        prefixes. Ads are served in the order given.

        Args:
            embeddings: Vectors [N, D].
            signals: Signals of each ad.
            taken: Tells the business codes in use under a semantic prefix; asked once a prefix.

        Raises:
            ValueError: A vector or a conversion type is unusable, or the lengths differ.
            CodebookFullError: Every SID of the codebook is taken.
        """
        vectors_ND = check_embeddings(embeddings, self.embedding_dim)
        if len(signals) != len(vectors_ND):
            raise ValueError(f"signals: {len(signals)} for {len(vectors_ND)} vectors: give one for each vector")
        sids_NT = np.empty((len(vectors_ND), len(self.level_sizes)), dtype=np.int64)
        sids_NT[:, :-1] = quantise(self._levels, vectors_ND)
        used = _UsedCodes(taken)
        for row, prefix in enumerate(map(tuple, sids_NT[:, :-1].tolist())):
            code = used.take(prefix, signals[row], self._business_size)
            if code is None:
                prefix, code = self._spill(vectors_ND[row : row + 1], signals[row], used)
                sids_NT[row, :-1] = prefix
            sids_NT[row, -1] = code
        return sids_NT

    def _spill(
        self, vector_1D: NDArray[np.float32], signals: BusinessSignals, used: _UsedCodes
    ) -> tuple[tuple[int, ...], int]:
        """Return the nearest semantic prefix that has room, and a code under it."""
        n_prefixes = int(np.prod([len(level.prices) for level in self._levels], dtype=object))
        n, tried = FIRST_ALTERNATIVES, set[tuple[int, ...]]()
        while True:
            for prefix in map(tuple, nearest_prefixes(self._levels, vector_1D, n)[0].tolist()):
                if prefix in tried:
                    continue
                tried.add(prefix)
                code = used.take(prefix, signals, self._business_size)
                if code is not None:
                    return prefix, code
            if n >= n_prefixes:
                total = n_prefixes * self._business_size
                raise CodebookFullError(f"all {total} SIDs of codebook {self.codebook_id!r} are taken")
            n *= 2


class _UsedCodes:
    """Business codes in use by prefix: those known before, and those given since."""

    def __init__(self, taken: Callable[[tuple[int, ...]], set[int]]) -> None:
        self._taken = taken
        self._used: dict[tuple[int, ...], set[int]] = {}

    def take(self, prefix: tuple[int, ...], signals: BusinessSignals, size: int) -> int | None:
        """Return the first free code under `prefix` in probing order and mark it, or None where there is none."""
        if prefix not in self._used:
            self._used[prefix] = set(self._taken(prefix))
        used = self._used[prefix]
        for code in probe_codes(signals, size):
            if code not in used:
                used.add(code)
                return code
        return None


def fit_codebook(
    embeddings: NDArray[np.float32],
    config: CodebookConfig,
    encoder: TextEncoder | None = None,
    codebook_id: str = "codebook",
) -> Codebook:
    """Fit a codebook to vectors [N, D]; the same vectors and config give the same bytes.

    Args:
        embeddings: Vectors of the ads known so far.
        config: Sizes, seed and iterations.
        encoder: Where the vectors came from, to be saved with the codebook; None where callers send vectors.
        codebook_id: Name in the artifact store.

    Raises:
        ValueError: There is no vector, one has the wrong length or a number that is not finite, or the encoder's
            vectors have another length.
    """
    if encoder is not None and encoder.dim != config.embedding_dim:
        raise ValueError(f"encoder.dim: {encoder.dim}: must be embedding_dim {config.embedding_dim}, fit it to that")
    residual_ND = check_embeddings(embeddings, config.embedding_dim)
    if not len(residual_ND):
        raise ValueError("embeddings: empty: give at least one vector to fit the codebook on")
    levels: list[SemanticLevel] = []
    for depth, size in enumerate(config.level_sizes[:-1]):
        found = balanced_kmeans(residual_ND, size, config.seed + depth, config.iterations)
        level = SemanticLevel(found.centroids, found.prices)
        residual_ND = residual_ND - level.centroids[quantise((level,), residual_ND)[:, 0]]
        levels.append(level)
    return Codebook(codebook_id, levels, config.level_sizes[-1], encoder)


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
    arrays: dict[str, NDArray[np.generic]] = {}
    for depth, level in enumerate(codebook.levels):
        arrays[f"level{depth}.centroids"] = level.centroids
        arrays[f"level{depth}.prices"] = level.prices
    if codebook.encoder is not None:
        arrays |= {f"encoder.{name}": array for name, array in codebook.encoder.arrays().items()}
    manifest = {
        "codebook_id": codebook.codebook_id,
        "level_sizes": list(codebook.level_sizes),
        "embedding_dim": codebook.embedding_dim,
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
        level = [np.asarray(arrays.get(f"level{depth}.{name}", ()), np.float32) for name in ("centroids", "prices")]
        if level[0].shape != (size, dim) or level[1].shape != (size,):
            found = f"{level[0].shape} and {level[1].shape}"
            raise CodebookFileError(path, f"level {depth} as {(size, dim)} and {(size,)}", found, REFIT)
        levels.append(SemanticLevel(level[0], level[1]))
    parts = {name.removeprefix("encoder."): array for name, array in arrays.items() if name.startswith("encoder.")}
    try:
        encoder = TextEncoder.from_arrays(parts) if parts else None
    except ValueError as error:
        raise CodebookFileError(path, "the arrays of a text encoder", str(error), REFIT) from error
    return Codebook(manifest["codebook_id"], levels, sizes[-1], encoder)
