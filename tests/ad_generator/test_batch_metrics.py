"""Metrics of the queue and its batches, as an exporter reads them."""

from __future__ import annotations

from typing import Any

import pytest
from ad_generator import batch_metrics
from ad_generator.batch_metrics import BatchMetrics
from ad_generator.batch_plan import BatchPlan, Limits
from ad_generator.batcher import BatchRecord
from ad_generator.request_queue import RequestQueue
from gr4ad_core.decoding.beam_schedule import BeamScale, Constraint
from gr4ad_runtime import semconv
from gr4ad_runtime.errors import ResourceExhaustedError
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


def test_queue_batches_widths_costs_and_refusals_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    monkeypatch.setattr(batch_metrics, "meter", provider.get_meter)
    metrics = BatchMetrics()
    queue = RequestQueue[str]((2, 4), Limits(4, 0.1), 2, metrics.record_refusal)
    metrics.watch(queue)
    for name in "ab":
        queue.offer(name, 2, 1000.0, 1.0)
    with pytest.raises(ResourceExhaustedError):
        queue.offer("c", 2, 1000.0, 1.0)
    plan = BatchPlan((0, 1), (), (), 0.0, BeamScale(0.5, Constraint.LOAD))
    metrics.record_batch(BatchRecord(plan, requests=2, wait_s=0.25, duration_s=0.5, cost_error=-0.125))

    points = read(reader)
    assert points[semconv.METRIC_QUEUE_SIZE].value == 2
    assert points[semconv.METRIC_ARRIVAL_RATE].value >= 0.0
    assert points[semconv.METRIC_QUEUE_DELAY].value == 0.0
    assert points[semconv.METRIC_BATCH_SIZE].sum == 2
    assert points[semconv.METRIC_BATCH_WAIT].sum == 0.25
    assert points[semconv.METRIC_BATCH_DURATION].sum == 0.5
    assert points[semconv.METRIC_COST_ERROR].sum == 0.125
    scale = points[semconv.METRIC_BEAM_SCALE]
    assert (scale.sum, dict(scale.attributes)) == (0.5, {semconv.BEAM_CONSTRAINED_BY: "load"})
    refused = points[semconv.METRIC_REQUESTS_REFUSED]
    assert (refused.value, dict(refused.attributes)) == (1, {semconv.REFUSAL_CODE: "RESOURCE_EXHAUSTED"})


def read(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {metric.name: metric.data.data_points[0] for scope in scopes for metric in scope.metrics}
