from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime import semconv
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.interceptors import AccessLogInterceptor
from gr4ad_runtime.status_details import METADATA_KEY
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from tests.gr4ad_runtime.sample_service import FIELD_ERRORS, SERVICE, SampleServicer, serving
from tests.plain_channel import plain_channel


def run_request(run_id: str) -> training_pb2.GetTrainingRunRequest:
    return training_pb2.GetTrainingRunRequest(run_id=run_id)


async def call(address: str, run_id: str, **options: Any) -> training_pb2.GetTrainingRunResponse:
    async with open_channel(address) as channel:
        return await training_pb2_grpc.TrainingServiceStub(channel).GetTrainingRun(run_request(run_id), **options)


async def watch(address: str, channel_name: str) -> list[Any]:
    async with plain_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        return [answer async for answer in stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel=channel_name))]


@pytest.mark.parametrize("name", [name for name in FIELD_ERRORS if name != "UnavailableError"])
async def test_an_error_becomes_its_status(name: str) -> None:
    async with serving(SampleServicer()) as (address, _):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(address, name)
    assert raised.value.code() is FIELD_ERRORS[name].code
    assert raised.value.details() == f"run_id: {name}: do something else"
    assert METADATA_KEY in dict(raised.value.trailing_metadata())


async def test_unavailable_is_tried_again() -> None:
    servicer = SampleServicer()
    async with serving(servicer) as (address, _):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(address, "UnavailableError")
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(servicer.calls) == 4


async def test_a_crash_tells_the_caller_where_to_look_and_nothing_else(spans: InMemorySpanExporter) -> None:
    async with serving(SampleServicer()) as (address, _):
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(address, "crash")
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(raised.value.details())
    trace_id = f"{spans.get_finished_spans()[0].context.trace_id:032x}"
    assert trace_id in str(raised.value.details())
    [crashed] = [line for line in logs if line["event"] == "call crashed"]
    assert crashed["log_level"] == "error"


async def test_errors_of_streams_are_mapped_too() -> None:
    async with serving(SampleServicer()) as (address, _):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await watch(address, "crash")
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert [answer.traceparent for answer in await watch(address, "stable")] == ["2-first", "2-second"]


@pytest.mark.parametrize(
    ("upstream", "own"),
    [
        ("UnavailableError", "UNAVAILABLE"),
        ("DeadlineExceededError", "DEADLINE_EXCEEDED"),
        ("NotFoundError", "INTERNAL"),
    ],
)
async def test_a_failed_call_to_another_service_is_told_as_such(upstream: str, own: str) -> None:
    async with serving(SampleServicer()) as (behind, _):

        async def forward() -> None:
            async with plain_channel(behind) as channel:
                await training_pb2_grpc.TrainingServiceStub(channel).GetTrainingRun(run_request(upstream))

        async with serving(SampleServicer(forward)) as (address, _), plain_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await training_pb2_grpc.TrainingServiceStub(channel).GetTrainingRun(run_request("forward"))
    assert raised.value.code().name == own
    assert "a call to another service failed" in str(raised.value.details())


async def test_broken_rules_are_refused_before_the_servicer() -> None:
    servicer = SampleServicer()
    async with serving(servicer) as (address, _):
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await call(address, "")
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            await watch(address, "Not A Channel")
    assert unary.value.code() is stream.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(unary.value.details()).startswith("run_id: (empty): ")
    assert str(stream.value.details()).startswith("channel: Not A Channel: ")
    assert servicer.calls == []


def by_kind(spans: InMemorySpanExporter, kind: SpanKind) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.kind is kind]


async def test_a_trace_goes_through_client_and_server(spans: InMemorySpanExporter) -> None:
    async with serving(SampleServicer()) as (behind, _):

        async def forward() -> None:
            await call(behind, "ok")

        async with serving(SampleServicer(forward)) as (address, _):
            await call(address, "forward")
    servers, clients = by_kind(spans, SpanKind.SERVER), by_kind(spans, SpanKind.CLIENT)
    assert len(servers) == len(clients) == 2
    assert len({span.context.trace_id for span in [*servers, *clients]}) == 1
    inner_server, outer_server = servers
    inner_client, outer_client = clients
    assert outer_client.parent is None
    assert outer_server.parent.span_id == outer_client.context.span_id
    assert inner_client.parent.span_id == outer_server.context.span_id
    assert inner_server.parent.span_id == inner_client.context.span_id
    assert outer_server.name == f"{SERVICE}/GetTrainingRun"
    assert dict(outer_server.attributes) == {
        semconv.RPC_SYSTEM: "grpc",
        semconv.RPC_SERVICE: SERVICE,
        semconv.RPC_METHOD: "GetTrainingRun",
        semconv.RPC_STATUS_CODE: 0,
    }


@pytest.mark.parametrize(("run_id", "code", "faulty"), [("NotFoundError", 5, False), ("crash", 13, True)])
async def test_only_server_faults_fail_the_server_span(
    spans: InMemorySpanExporter, run_id: str, code: int, faulty: bool
) -> None:
    async with serving(SampleServicer()) as (address, _):
        with pytest.raises(grpc.aio.AioRpcError):
            await call(address, run_id)
    [server], [client] = by_kind(spans, SpanKind.SERVER), by_kind(spans, SpanKind.CLIENT)
    assert server.attributes[semconv.RPC_STATUS_CODE] == client.attributes[semconv.RPC_STATUS_CODE] == code
    assert (server.status.status_code is StatusCode.ERROR) is faulty
    assert client.status.status_code is StatusCode.ERROR


async def test_spans_end_when_the_caller_gives_up(spans: InMemorySpanExporter) -> None:
    async with serving(SampleServicer()) as (address, _), open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetTrainingRun(run_request("sleep-5000"), timeout=0.05)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        cancelled = asyncio.ensure_future(call(address, "sleep-5000"))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        stream = stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel="sleep-5000"))
        async for _ in stream:
            break
        stream.cancel()
        for _ in range(100):
            if len(spans.get_finished_spans()) == 6:
                break
            await asyncio.sleep(0.02)
    codes = [span.attributes[semconv.RPC_STATUS_CODE] for span in by_kind(spans, SpanKind.CLIENT)]
    assert sorted(codes) == [1, 1, 4]
    assert len(by_kind(spans, SpanKind.SERVER)) == 3


async def test_a_call_is_one_line_without_what_was_sent() -> None:
    async with serving(SampleServicer()) as (address, _):
        with capture_logs() as logs:
            await call(address, "sleep-20")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(address, "NotFoundError")
    lines = [line for line in logs if line["event"] == "call"]
    assert [(line["code"], line["log_level"]) for line in lines] == [("OK", "debug"), ("NOT_FOUND", "info")]
    assert lines[0]["method"] == f"{SERVICE}/GetTrainingRun"
    assert 20.0 <= lines[0]["duration_ms"] < 5000.0
    assert "sleep-20" not in str(logs)


async def test_calls_are_measured() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    server = grpc.aio.server(interceptors=[AccessLogInterceptor(provider)])
    training_pb2_grpc.add_TrainingServiceServicer_to_server(SampleServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    for run_id in ("a", "b", "sleep-30"):
        await call(f"127.0.0.1:{port}", run_id)
    await server.stop(None)
    [point] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert point.count == 3
    assert 0.03 <= point.sum < 5.0
    assert point.attributes[semconv.RPC_METHOD] == "GetTrainingRun"
    provider.shutdown()


async def test_health_checks_leave_no_trace(spans: InMemorySpanExporter) -> None:
    async with serving(SampleServicer()) as (address, _):
        with capture_logs() as logs:
            async with open_channel(address) as channel:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert spans.get_finished_spans() == ()
    assert logs == []
