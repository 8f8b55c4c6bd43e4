"""Metrics of the queue, its batches and the widths they ran at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from gr4ad_runtime import semconv
from gr4ad_runtime.errors import Gr4adError
from gr4ad_runtime.telemetry import meter
from opentelemetry.metrics import CallbackOptions, Observation

from ad_generator.batcher import BatchRecord
from ad_generator.request_queue import RequestQueue


class BatchMetrics:
    """Records what the queue and the batcher tell."""

    def __init__(self) -> None:
        """Create the instruments."""
        instruments = meter(__name__)
        histogram = instruments.create_histogram
        self._size = histogram(semconv.METRIC_BATCH_SIZE, "{request}", "Requests of one model call.")
        self._wait = histogram(semconv.METRIC_BATCH_WAIT, "s", "Time that a batch's oldest request waited.")
        self._duration = histogram(semconv.METRIC_BATCH_DURATION, "s", "Time of one model call.")
        self._scale = histogram(semconv.METRIC_BEAM_SCALE, "1", "Factor on the policy's own beam widths, per batch.")
        self._error = histogram(
            semconv.METRIC_COST_ERROR, "1", "How far a model call's time was from the expected one, relative to it."
        )
        self._refused = instruments.create_counter(
            semconv.METRIC_REQUESTS_REFUSED, "{request}", "Requests that were not computed."
        )

    def record_batch(self, record: BatchRecord) -> None:
        """Record a batch."""
        self._size.record(record.requests)
        self._wait.record(record.wait_s)
        self._duration.record(record.duration_s)
        scale = record.plan.scale
        self._scale.record(scale.factor, {semconv.BEAM_CONSTRAINED_BY: scale.constrained_by.value})
        self._error.record(abs(record.cost_error))

    def record_refusal(self, error: Gr4adError) -> None:
        """Record a request that was not computed."""
        self._refused.add(1, {semconv.REFUSAL_CODE: error.code.name})

    def watch(self, queue: RequestQueue[Any]) -> None:
        """Offer the queue's state to the metrics exporter, which reads it in a thread of its own."""
        instruments = meter(__name__)
        load = queue.load
        for name, unit, description, read in (
            (semconv.METRIC_QUEUE_SIZE, "{request}", "Requests waiting for the model.", lambda: len(queue)),
            (
                semconv.METRIC_QUEUE_DELAY,
                "s",
                "Mean wait of the oldest request of a batch.",
                lambda: load.queue_delay_s,
            ),
            (semconv.METRIC_ARRIVAL_RATE, "{request}/s", "Arrivals a second.", lambda: load.rate(time.monotonic())),
        ):
            instruments.create_observable_gauge(name, [observe(read)], unit, description)


def observe(read: Callable[[], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """Return what the exporter calls to read a value."""
    return lambda options: [Observation(read())]
