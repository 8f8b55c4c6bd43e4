"""A receiver of OTLP/gRPC that keeps spans in memory: enough of a collector to look at traces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

POLL_SECONDS = 0.05
MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        parent_id: The same; empty for a root.
        name: Its name.
        service: The process's `service.name`.
        start_ns: Unix time in nanoseconds.
        end_ns: The same.
        attributes: Its attributes.
        links: (trace_id, span_id) of the spans it refers to.
        ok: Whether its status is not an error.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    ok: bool = True


class OtlpReceiver:
    """A server on a loopback port; an asynchronous context manager.

    Attributes:
        spans: What came in, in the order of arrival.
        metric_names: (service, name) of the metrics that came in.
        endpoint: Where to export to, as http://host:port.
    """

    def __init__(self, port: int = 0) -> None:
        """Describe a receiver on a port; 0 for a free one."""
        self.spans: list[Span] = []
        self.metric_names: set[tuple[str, str]] = set()
        self.endpoint = ""
        self._port = port
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MESSAGE_BYTES)]
        )
        # The package ships these two without types.
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{self._port}')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop(1.0)

    def trace(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace by their start."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start_ns)

    async def wait_for(self, enough: Callable[[Sequence[Span]], bool], seconds: float = 10.0) -> list[Span]:
        """Wait until `enough` says so of the spans, and return them.

        Raises:
            TimeoutError: It did not within `seconds`; names the spans there are.
        """
        deadline = time.monotonic() + seconds
        while not enough(self.spans):
            if time.monotonic() > deadline:
                there = sorted({f"{span.service}: {span.name}" for span in self.spans})
                raise TimeoutError(f"spans: {there}: not what was waited for in {seconds:g} s")
            await asyncio.sleep(POLL_SECONDS)
        return list(self.spans)


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = _attributes(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._receiver.spans.append(
                        Span(
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            name=span.name,
                            service=service,
                            start_ns=span.start_time_unix_nano,
                            end_ns=span.end_time_unix_nano,
                            attributes=_attributes(span.attributes),
                            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                            ok=span.status.code != span.status.STATUS_CODE_ERROR,
                        )
                    )
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    async def Export(
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: Any
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        for resource in request.resource_metrics:
            service = _attributes(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_metrics:
                self._receiver.metric_names.update((service, metric.name) for metric in scope.metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)
