"""Spans that tell, in the trace of a catalogue change, when the index held it."""

from __future__ import annotations

from gr4ad_runtime import semconv
from gr4ad_runtime.telemetry import context_of, is_sampled, tracer


def record_applied_changes(changes: dict[str, int], codebook_id: str, cursor: int) -> None:
    """Record, in the trace of each change of the catalogue, that the index now holds it.

    Args:
        changes: W3C traceparent of the call that made the change → when it arrived here, in Unix nanoseconds.
        codebook_id: Codebook of the catalogue.
        cursor: Position in the catalogue feed up to which the index holds every change.
    """
    for traceparent, arrived_ns in changes.items():
        parent = context_of(traceparent)
        if is_sampled(parent):
            span = tracer(__name__).start_span(
                semconv.SPAN_APPLY_CATALOG_CHANGES,
                parent,
                attributes={semconv.CODEBOOK_ID: codebook_id, semconv.CATALOG_CURSOR: cursor},
                start_time=arrived_ns,
            )
            span.end()
