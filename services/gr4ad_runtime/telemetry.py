"""Traces and metrics of a process: one provider each, exported by OTLP where an endpoint is set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gr4ad_runtime.settings import ServiceSettings

# Short enough for a person who looks at a trace right after the call.
SPAN_EXPORT_MS = 1000
METRIC_EXPORT_MS = 10_000
EXPORT_TIMEOUT_S = 3

_trace_context = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The providers of a process."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider

    def shutdown(self) -> None:
        """Export what is left and stop; blocks for some seconds at most."""
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


def configure_telemetry(
    service: str,
    settings: ServiceSettings,
    *,
    span_processors: Sequence[SpanProcessor] = (),
    metric_readers: Sequence[MetricReader] = (),
) -> Telemetry:
    """Set up the process's traces and metrics; a second call in a process leaves the global providers as they are.

    Args:
        service: Value of `service.name`.
        settings: The endpoint and the share of traces to record.
        span_processors: Further receivers of spans.
        metric_readers: Further readers of metrics.
    """
    resource = Resource.create({"service.name": service, "service.namespace": "gr4ad"})
    # With nobody to receive them, traces that start here are not recorded; those of a caller still pass through.
    received = bool(settings.otlp_endpoint or span_processors)
    sampler = ParentBasedTraceIdRatio(settings.trace_sample_ratio if received else 0.0)
    tracer_provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    for processor in span_processors:
        tracer_provider.add_span_processor(processor)
    readers = list(metric_readers)
    if settings.otlp_endpoint:
        insecure = not settings.otlp_endpoint.startswith("https://")
        spans = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S)
        tracer_provider.add_span_processor(BatchSpanProcessor(spans, schedule_delay_millis=SPAN_EXPORT_MS))
        points = OTLPMetricExporter(endpoint=settings.otlp_endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S)
        readers.append(PeriodicExportingMetricReader(points, export_interval_millis=METRIC_EXPORT_MS))
    meter_provider = MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False)
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(meter_provider)
    return Telemetry(tracer_provider, meter_provider)


def tracer(name: str) -> Tracer:
    """Return a tracer of the process's provider; may be called before `configure_telemetry`."""
    return trace.get_tracer(name)


def meter(name: str) -> Meter:
    """Return a meter of the process's provider; may be called before `configure_telemetry`."""
    return metrics.get_meter(name)


def current_traceparent() -> str:
    """Return the W3C traceparent of the current span; empty outside a trace."""
    carrier: dict[str, str] = {}
    _trace_context.inject(carrier)
    return carrier.get("traceparent", "")


def sampled_traceparent() -> str:
    """Return the W3C traceparent of the current span if its trace is being recorded; empty otherwise."""
    return current_traceparent() if trace.get_current_span().get_span_context().trace_flags.sampled else ""


def context_of(traceparent: str) -> Context:
    """Return the trace context that a W3C traceparent names: an empty one where it is empty or malformed."""
    return _trace_context.extract({"traceparent": traceparent}, context=Context())


def is_sampled(context: Context) -> bool:
    """Tell whether the trace that a context belongs to is being recorded."""
    return trace.get_current_span(context).get_span_context().trace_flags.sampled
