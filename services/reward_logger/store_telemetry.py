"""What the reward logger tells of its work: a span in the trace of every list stored, and counters."""

from __future__ import annotations

from collections.abc import Sequence

from gr4ad_runtime import semconv
from gr4ad_runtime.telemetry import context_of, is_sampled, meter, tracer
from opentelemetry import trace

from reward_logger.list_store import ServedList

_tracer = tracer("reward_logger")
_meter = meter("reward_logger")
_lists_stored = _meter.create_counter(semconv.METRIC_LISTS_STORED, description="Served lists stored.")
_events_stored = _meter.create_counter(semconv.METRIC_EVENTS_STORED, description="Impressions and feedback stored.")


def lists_stored(lists: Sequence[ServedList], start_ns: int) -> None:
    """Tell of lists that a call has stored since `start_ns` (unix time).

    A batch holds lists of many traces. Each one that is recorded gets a span whose parent is the request it answered,
    so that its trace goes on to here, and a link to the call that brought the list.
    """
    _lists_stored.add(len(lists))
    call = trace.get_current_span().get_span_context()
    links = [trace.Link(call)] if call.is_valid else []
    for served in lists:
        parent = context_of(served.traceparent)
        if not is_sampled(parent):
            continue
        _tracer.start_span(
            semconv.SPAN_STORE_SERVED_LISTS,
            context=parent,
            start_time=start_ns,
            links=links,
            attributes={semconv.REQUEST_ID: served.request_id, semconv.LIST_COUNT: 1},
        ).end()


def events_stored(count: int) -> None:
    """Tell of events that a call has stored."""
    _events_stored.add(count)
