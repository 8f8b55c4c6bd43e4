"""The vectors of a batch of ads under one codebook, the callers' own or the text encoder's, and their nearest codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gr4ad_core.sid.codebook import Codebook
from gr4ad_runtime.errors import FailedPreconditionError, InvalidArgumentError
from numpy.typing import NDArray

from sid_assigner.ads import Ad

# Squared distances between vectors of this size still are far from the end of float32.
MAX_MAGNITUDE = 1e6


def check_vectors(ads: Sequence[Ad], codebook: Codebook) -> None:
    """Check a caller's vectors against the active codebook.

    Raises:
        InvalidArgumentError: A vector has the wrong length or an unusable number, or is missing where the codebook
            has no text encoder. Names the ad and the number by their indices.
    """
    for index, ad in enumerate(ads):
        field = f"ads[{index}].embedding"
        if ad.embedding is None:
            if codebook.encoder is None:
                remedy = f"codebook {codebook.codebook_id!r} has no text encoder, send {codebook.embedding_dim} numbers"
                raise InvalidArgumentError(field, "empty", remedy)
            continue
        if ad.embedding.size != codebook.embedding_dim:
            remedy = f"codebook {codebook.codebook_id!r} takes {codebook.embedding_dim}, send as many or none"
            raise InvalidArgumentError(field, f"{ad.embedding.size} numbers", remedy)
        _check_numbers(ad.embedding, field)


def _check_numbers(vector_D: NDArray[np.float32], field: str) -> None:
    # A comparison with NaN is false, so that this finds it as well.
    wrong = np.flatnonzero(~(np.abs(vector_D) <= MAX_MAGNITUDE))
    if not wrong.size:
        return
    at = int(wrong[0])
    number = float(vector_D[at])
    if np.isfinite(number):
        remedy = f"send numbers between -{MAX_MAGNITUDE:g} and {MAX_MAGNITUDE:g}"
        raise InvalidArgumentError(f"{field}[{at}]", f"{number:g}", remedy)
    name = "NaN" if np.isnan(number) else f"{'-' if number < 0 else ''}infinity"
    raise InvalidArgumentError(f"{field}[{at}]", name, "send finite numbers")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ads as one codebook sees them, whichever SIDs are taken.

    Attributes:
        vectors_ND: Content vectors, float32.
        semantic_codes_NT: Codes of the nearest semantic prefix of each.
    """

    vectors_ND: NDArray[np.float32]
    semantic_codes_NT: NDArray[np.int64]

    def of(self, rows: Sequence[int]) -> Encoded:
        """Return some of the ads."""
        return Encoded(self.vectors_ND[rows], self.semantic_codes_NT[rows])


def encode(codebook: Codebook, ads: Sequence[Ad]) -> Encoded:
    """Encode ads: own vectors of the codebook's length, the text encoder's for the others.

    An own vector of another length was made for another codebook; here the text has to do.

    Raises:
        FailedPreconditionError: An ad has no such vector and the codebook no text encoder.
    """
    vectors_ND = np.empty((len(ads), codebook.embedding_dim), dtype=np.float32)
    to_encode: list[int] = []
    for index, ad in enumerate(ads):
        if ad.embedding is not None and ad.embedding.size == codebook.embedding_dim:
            vectors_ND[index] = ad.embedding
        else:
            to_encode.append(index)
    if to_encode:
        if codebook.encoder is None:
            problem = (
                f"{codebook.codebook_id!r} has no text encoder, and ad {ads[to_encode[0]].ad_id!r} "
                f"has no vector of {codebook.embedding_dim} numbers"
            )
            raise FailedPreconditionError("codebook_id", problem, "fit and activate a codebook with a text encoder")
        vectors_ND[to_encode] = codebook.encode_ads([ads[index].content for index in to_encode])
    return Encoded(vectors_ND, codebook.quantise(vectors_ND))
