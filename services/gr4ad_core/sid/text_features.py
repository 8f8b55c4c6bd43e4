"""Hashed word and character n-gram counts of texts, as sparse rows."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse

_WORD = re.compile(r"\w+")
MOST_REMEMBERED = 500_000  # words, and pairs: a service must not grow with every text it ever sees
CHAR_GRAM = 4  # long enough to carry a word stem, short enough to match across spellings


def feature_names(text: str) -> Iterator[str]:
    """Yield the features of a text: words, pairs of neighbouring words, and character 4-grams of the longer words.

    Character n-grams let an unseen inflection, a typo or a language without spaces share features with known words.
    """
    for words in _lines(text):
        for word in words:
            yield from _word_features(word)
        for left, right in pairwise(words):
            yield f"p {left} {right}"


class FeatureHasher:
    """Maps features to hash buckets; remembers those of words and pairs it has met, since texts repeat them."""

    def __init__(self, n_buckets: int) -> None:
        """Hash into `n_buckets` columns."""
        self._n_buckets = n_buckets
        self._of_word: dict[str, tuple[int, ...]] = {}
        self._of_pair: dict[tuple[str, str], int] = {}

    def counts(self, texts: Sequence[str]) -> sparse.csr_array:
        """Return how often each bucket occurs in each text, float32 sparse [N, n_buckets], columns sorted."""
        columns: list[int] = []
        lengths: list[int] = []
        for text in texts:
            before = len(columns)
            for words in _lines(text):
                for word in words:
                    columns += self._of_word.get(word) or self._word(word)
                for pair in pairwise(words):
                    column = self._of_pair.get(pair)
                    columns.append(self._pair(pair) if column is None else column)
            lengths.append(len(columns) - before)
        # Narrow numbers are sorted in half the time.
        dtype = np.int32 if len(texts) * self._n_buckets < 2**31 else np.int64
        places = np.repeat(np.arange(len(texts), dtype=dtype) * self._n_buckets, lengths)
        places, counts = np.unique(places + np.asarray(columns, dtype=dtype), return_counts=True)
        indptr = np.searchsorted(places, np.arange(len(texts) + 1) * self._n_buckets)
        shape = (len(texts), self._n_buckets)
        return sparse.csr_array((counts.astype(np.float32), places % self._n_buckets, indptr), shape=shape)

    def _word(self, word: str) -> tuple[int, ...]:
        columns = tuple(map(self._bucket, _word_features(word)))
        if len(self._of_word) < MOST_REMEMBERED:
            self._of_word[word] = columns
        return columns

    def _pair(self, pair: tuple[str, str]) -> int:
        column = self._bucket(f"p {pair[0]} {pair[1]}")
        if len(self._of_pair) < MOST_REMEMBERED:
            self._of_pair[pair] = column
        return column

    def _bucket(self, name: str) -> int:
        return zlib.crc32(name.encode("utf-8", "surrogatepass")) % self._n_buckets


def _lines(text: str) -> Iterator[list[str]]:
    for line in unicodedata.normalize("NFKC", text).casefold().splitlines():
        yield _WORD.findall(line)


def _word_features(word: str) -> Iterator[str]:
    yield f"w {word}"
    if len(word) > CHAR_GRAM:
        padded = f"_{word}_"
        for start in range(len(padded) - CHAR_GRAM + 1):
            yield f"c {padded[start : start + CHAR_GRAM]}"
