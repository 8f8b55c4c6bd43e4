"""Hashed word and character n-gram counts of texts, as sparse rows."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse

_WORD = re.compile(r"\w+")
CHAR_GRAM = 4  # long enough to carry a word stem, short enough to match across spellings


def feature_names(text: str) -> Iterator[str]:
    """Yield the features of a text: words, pairs of neighbouring words, and character 4-grams of the longer words.

    Character n-grams let an unseen inflection, a typo or a language without spaces share features with known words.
    """
    for line in unicodedata.normalize("NFKC", text).casefold().splitlines():
        words = _WORD.findall(line)
        for word in words:
            yield f"w {word}"
            if len(word) > CHAR_GRAM:
                padded = f"_{word}_"
                for start in range(len(padded) - CHAR_GRAM + 1):
                    yield f"c {padded[start : start + CHAR_GRAM]}"
        for left, right in pairwise(words):
            yield f"p {left} {right}"


class FeatureHasher:
    """Maps features to hash buckets; remembers the buckets of features it has met, since texts repeat words."""

    def __init__(self, n_buckets: int) -> None:
        """Hash into `n_buckets` columns."""
        self._n_buckets = n_buckets
        self._bucket_of: dict[str, int] = {}

    def counts(self, texts: Sequence[str]) -> sparse.csr_array:
        """Return how often each bucket occurs in each text, float32 sparse [N, n_buckets], columns sorted."""
        indptr = np.zeros(len(texts) + 1, dtype=np.int64)
        columns: list[int] = []
        values: list[int] = []
        for row, text in enumerate(texts):
            counted = Counter(map(self._bucket, feature_names(text)))
            for column in sorted(counted):
                columns.append(column)
                values.append(counted[column])
            indptr[row + 1] = len(columns)
        data = np.asarray(values, dtype=np.float32)
        indices = np.asarray(columns, dtype=np.int64)
        return sparse.csr_array((data, indices, indptr), shape=(len(texts), self._n_buckets))

    def _bucket(self, name: str) -> int:
        bucket = self._bucket_of.get(name)
        if bucket is None:
            bucket = zlib.crc32(name.encode("utf-8", "surrogatepass")) % self._n_buckets
            if len(self._bucket_of) < 1_000_000:  # a service must not grow with every text it ever sees
                self._bucket_of[name] = bucket
        return bucket
