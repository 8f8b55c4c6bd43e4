"""The co-occurrence head: it moves an ad's content vector to where the ads stand that users choose beside it
(method.md §1.1).

    z = normalise( x + W_2 relu( W_1 x + b_1 ) + b_2 ),    x the content vector at unit length

`gr4ad_core.learning.embedding` trains it; this is the NumPy side, which needs no torch. It reads content
alone, so an ad that nobody has seen yet gets its vector like any other.

Shapes: N ads, D coordinates, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 8_192  # vectors at a time: bounds the memory of the hidden units
LEAST_NORM = 1e-12


class CooccurrenceHead:
    """A trained head."""

    def __init__(
        self,
        w1: NDArray[np.float32],
        b1: NDArray[np.float32],
        w2: NDArray[np.float32],
        b2: NDArray[np.float32],
    ) -> None:
        """Use trained arrays W_1 [D, H], b_1 [H], W_2 [H, D] and b_2 [D].

        Raises:
            ValueError: Their shapes do not fit one another.
        """
        if w1.ndim != 2 or w2.shape != w1.shape[::-1] or b1.shape != w1.shape[1:] or b2.shape != w1.shape[:1]:
            shapes = ", ".join(str(array.shape) for array in (w1, b1, w2, b2))
            raise ValueError(f"head: shapes {shapes}: must be [D, H], [H], [H, D], [D], save the head anew")
        self._w1, self._b1, self._w2, self._b2 = w1, b1, w2, b2

    @property
    def dim(self) -> int:
        """Length D of the vectors."""
        return int(self._w1.shape[0])

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the unit vectors [N, D] of content vectors [N, D]."""
        moved_ND = np.empty((len(vectors), self.dim), dtype=np.float32)
        for start in range(0, len(vectors), CHUNK):
            unit_ND = _unit(vectors[start : start + CHUNK])
            hidden_NH = np.maximum(unit_ND @ self._w1 + self._b1, 0.0)
            moved_ND[start : start + CHUNK] = _unit(unit_ND + hidden_NH @ self._w2 + self._b2)
        return moved_ND

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `from_arrays` needs."""
        return {"w1": self._w1, "b1": self._b1, "w2": self._w2, "b2": self._b2}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> CooccurrenceHead:
        """Build the head that `arrays` came from.

        Raises:
            ValueError: An array is missing or its shape does not fit the others.
        """
        names = ("w1", "b1", "w2", "b2")
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"head: {', '.join(missing)}: missing, save the head anew")
        return cls(*(np.asarray(arrays[name], dtype=np.float32) for name in names))


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = vectors_ND / np.maximum(norms_N1, LEAST_NORM)
    return unit_ND
