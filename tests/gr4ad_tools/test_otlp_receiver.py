from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from gr4ad_tools.otlp_receiver import OtlpReceiver
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.plain_channel import plain_channel


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def export(service: str, *spans: trace_pb2.Span) -> trace_service_pb2.ExportTraceServiceRequest:
    request = trace_service_pb2.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.append(KeyValue(key="service.name", value=text(service)))
    resource.scope_spans.add().spans.extend(spans)
    return request


def span(name: str, number: int, **fields: object) -> trace_pb2.Span:
    return trace_pb2.Span(name=name, trace_id=b"\1" * 16, span_id=bytes([number]) * 8, **fields)


async def send(receiver: OtlpReceiver, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
    async with plain_channel(receiver.endpoint.removeprefix("http://")) as channel:
        await trace_service_pb2_grpc.TraceServiceStub(channel).Export(request)


async def test_a_span_is_kept_whole() -> None:
    attributes = {
        "whole": AnyValue(int_value=3),
        "truth": AnyValue(bool_value=True),
        "part": AnyValue(double_value=0.5),
        "list": AnyValue(array_value=ArrayValue(values=[text("a"), AnyValue(int_value=1)])),
        "map": AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=text("v"))])),
        "nothing": AnyValue(),
    }
    sent = span(
        "work",
        2,
        parent_span_id=b"\7" * 8,
        start_time_unix_nano=10,
        end_time_unix_nano=30,
        attributes=[KeyValue(key=key, value=value) for key, value in attributes.items()],
        links=[trace_pb2.Span.Link(trace_id=b"\3" * 16, span_id=b"\4" * 8)],
        status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR),
    )
    async with OtlpReceiver() as receiver:
        await send(receiver, export("generator", sent))
    [got] = receiver.spans
    assert (got.name, got.service, got.start_ns, got.end_ns, got.ok) == ("work", "generator", 10, 30, False)
    assert (got.trace_id, got.span_id, got.parent_id) == ("01" * 16, "02" * 8, "07" * 8)
    assert got.attributes == {
        "whole": 3,
        "truth": True,
        "part": 0.5,
        "list": ["a", 1],
        "map": {"k": "v"},
        "nothing": None,
    }
    assert got.links == (("03" * 16, "04" * 8),)


async def test_spans_of_a_trace_come_by_their_start() -> None:
    async with OtlpReceiver() as receiver:
        await send(receiver, export("b", span("second", 2, start_time_unix_nano=20)))
        await send(receiver, export("a", span("first", 1, start_time_unix_nano=10)))
    assert [kept.name for kept in receiver.spans] == ["second", "first"]
    assert [kept.name for kept in receiver.trace("01" * 16)] == ["first", "second"]
    assert receiver.trace("02" * 16) == []


async def test_a_span_is_waited_for() -> None:
    async with OtlpReceiver() as receiver:
        waiting = asyncio.create_task(receiver.wait_for(lambda spans: any(kept.name == "late" for kept in spans)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await send(receiver, export("a", span("late", 1)))
        assert [kept.name for kept in await waiting] == ["late"]


async def test_waiting_in_vain_tells_what_came() -> None:
    async with OtlpReceiver() as receiver:
        await send(receiver, export("a", span("other", 1)))
        with pytest.raises(TimeoutError, match=r"\['a: other'\]: not what was waited for in 0.1 s"):
            await receiver.wait_for(lambda spans: len(spans) == 2, 0.1)


async def test_a_port_may_be_chosen(free_port: Callable[[], int]) -> None:
    port = free_port()
    async with OtlpReceiver(port) as receiver:
        assert receiver.endpoint == f"http://127.0.0.1:{port}"
