"""What an event is worth: the expected charge behind it, and the value buckets that the eCPM token predicts.

`v(event e on ad i) = 1000 · bid_i · r[conversion type of i][behaviour of e]` in micros per mille: r is the rate at
which such an event ends in the one that is charged (method.md §2.3, §3.1).
Shapes: N events, M samples, V value buckets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMPRESSION, CLICK, CONVERSION = 1, 2, 3
BEHAVIORS = (IMPRESSION, CLICK, CONVERSION)

PRIOR_EVENTS = 50.0
"""Weight of the pooled rate against an ad type's own events: a type with fewer events leans on all the others."""
PRIOR_RATES: Mapping[tuple[int, int], float] = {
    (IMPRESSION, CLICK): 0.02,
    (IMPRESSION, CONVERSION): 0.001,
    (CLICK, CONVERSION): 0.05,
}
"""Rates where the data hold no event of the earlier behaviour at all: plausible for display advertising."""


def charged_behavior(conversion_type: str) -> int:
    """Return the behaviour that an ad of this conversion type pays for."""
    return CLICK if conversion_type == "click" else CONVERSION


@dataclass(frozen=True)
class ChargeRates:
    """Share of the events of one behaviour that end in the charged one, per conversion type."""

    rates: Mapping[str, tuple[float, float, float]]
    """Conversion type → rates of impression, click, conversion; 1 from the charged behaviour on."""

    @classmethod
    def measure(cls, conversion_types_N: NDArray[np.str_], behaviors_N: NDArray[np.int64]) -> ChargeRates:
        """Count events per conversion type, smoothed towards the rate of all types together."""
        kinds, kind_N = np.unique(conversion_types_N, return_inverse=True)
        counts = np.zeros((len(kinds), max(BEHAVIORS) + 1))
        np.add.at(counts, (kind_N, behaviors_N), 1.0)
        pooled = counts.sum(axis=0)

        def smoothed(kind: int, behavior: int, charged: int) -> float:
            if behavior >= charged:
                return 1.0
            prior = pooled[charged] / pooled[behavior] if pooled[behavior] else PRIOR_RATES[behavior, charged]
            rate = (counts[kind, charged] + PRIOR_EVENTS * prior) / (counts[kind, behavior] + PRIOR_EVENTS)
            return float(min(rate, 1.0))  # A log may hold the charged event without the ones before it.

        return cls(
            {
                str(name): (
                    smoothed(kind, IMPRESSION, charged_behavior(name)),
                    smoothed(kind, CLICK, charged_behavior(name)),
                    1.0,
                )
                for kind, name in enumerate(kinds)
            }
        )

    def of_types(self, conversion_types: Collection[str]) -> ChargeRates:
        """Return the rates with those of further conversion types added, at `PRIOR_RATES`."""
        rates = dict(self.rates)
        for name in sorted(set(conversion_types) - set(rates)):
            charged = charged_behavior(name)
            click = 1.0 if charged == CLICK else PRIOR_RATES[CLICK, charged]
            rates[name] = (PRIOR_RATES[IMPRESSION, charged], click, 1.0)
        return ChargeRates(rates)

    def value_micros(
        self,
        bid_micros_N: NDArray[np.int64],
        conversion_types_N: NDArray[np.str_],
        behaviors_N: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return the value labels of events in micros per mille.

        Raises:
            KeyError: A conversion type did not occur in the measured data.
        """
        kinds, kind_N = np.unique(conversion_types_N, return_inverse=True)
        table = np.array([self.rates[str(kind)] for kind in kinds]).reshape(len(kinds), len(BEHAVIORS))
        values: NDArray[np.float64] = 1000.0 * bid_micros_N * table[kind_N, behaviors_N - IMPRESSION]
        return values


@dataclass(frozen=True)
class EcpmBuckets:
    """Value buckets with about the same number of samples each."""

    edges: NDArray[np.float32]
    """Upper edge of every bucket but the last, rising, `[V − 1]`; a value on an edge lies below it."""
    means: NDArray[np.float32]
    """Mean value of every bucket, micros per mille, `[V]`."""

    @classmethod
    def fit(cls, value_micros_M: NDArray[np.float64], n_buckets: int) -> EcpmBuckets:
        """Cut values at their quantiles; equal values share a bucket, so there may be fewer than `n_buckets`.

        Raises:
            ValueError: No values, or one that is not finite or negative.
        """
        values = value_micros_M.astype(np.float32)
        if not len(values) or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(
                f"value_micros: {len(values)} values, not all finite and at least 0: give the value of each sample"
            )
        shares = np.arange(1, n_buckets) / n_buckets
        quantiles = np.unique(np.quantile(values, shares, method="lower")) if n_buckets > 1 else values[:0]
        # Every edge is a value that occurs and lies below the largest, hence no bucket is empty.
        edges = quantiles[quantiles < values.max()]
        bucket_M = np.searchsorted(edges, values, side="left")
        sums = np.bincount(bucket_M, weights=values.astype(np.float64), minlength=len(edges) + 1)
        means = sums / np.bincount(bucket_M, minlength=len(edges) + 1)
        return cls(edges=edges.astype(np.float32), means=means.astype(np.float32))
