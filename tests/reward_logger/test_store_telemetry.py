"""The trace of a request goes on to where its list is stored."""

from __future__ import annotations

from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime import semconv
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.oracles.reward_messages import served_list

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def stored_lists(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == semconv.SPAN_STORE_SERVED_LISTS]


async def test_a_stored_list_has_a_span_under_the_request_it_answered(
    stub: reward_pb2_grpc.RewardServiceAsyncStub, spans: InMemorySpanExporter
) -> None:
    lists = [
        served_list(1, traceparent=f"00-{TRACE}-{PARENT}-01"),
        served_list(2, traceparent=f"00-{TRACE}-{PARENT}-00"),  # not sampled
        served_list(3),
        served_list(4, traceparent="not a traceparent"),
    ]
    request = reward_pb2.BatchCreateServedListsRequest(served_lists=lists)
    assert (await stub.BatchCreateServedLists(request)).stored_count == 4
    (span,) = stored_lists(spans)
    assert span.parent is not None
    assert trace.format_trace_id(span.get_span_context().trace_id) == TRACE
    assert trace.format_span_id(span.parent.span_id) == PARENT
    assert span.attributes is not None
    assert span.attributes[semconv.REQUEST_ID] == "request-1"
    (call,) = [
        s for s in spans.get_finished_spans() if s.name.endswith("/BatchCreateServedLists") and s.kind.name == "SERVER"
    ]
    assert [link.context.span_id for link in span.links] == [call.get_span_context().span_id]
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < span.end_time - span.start_time < 10_000_000_000


async def test_a_duplicate_has_none(stub: reward_pb2_grpc.RewardServiceAsyncStub, spans: InMemorySpanExporter) -> None:
    request = reward_pb2.BatchCreateServedListsRequest(
        served_lists=[served_list(1, traceparent=f"00-{TRACE}-{PARENT}-01")]
    )
    for _ in range(2):
        await stub.BatchCreateServedLists(request)
    assert len(stored_lists(spans)) == 1
