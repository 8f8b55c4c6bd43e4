"""What every call passes through on the client: a deadline where none is stated, and a span."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

import grpc
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from gr4ad_runtime import semconv

PLUMBING = "/grpc.health.v1."


class UnaryCallInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Encloses a unary call in a client span, hands the trace on, and sees to a deadline: no call waits for ever."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        """Make the call."""
        if client_call_details.timeout is None:
            client_call_details = _replace(client_call_details, timeout=self._deadline_s)
        return await _traced(continuation, client_call_details, request)


class StreamCallInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    """Encloses a call that streams its answer in a client span, and hands the trace on."""

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        """Make the call."""
        return await _traced(continuation, client_call_details, request)


async def _traced(continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any) -> Any:
    method = details.method.decode() if isinstance(details.method, bytes) else details.method
    if method.startswith(PLUMBING):
        return await continuation(details, request)
    service, _, name = method[1:].rpartition("/")
    span = trace.get_tracer("gr4ad_runtime").start_span(
        method[1:],
        kind=SpanKind.CLIENT,
        attributes={semconv.RPC_SYSTEM: "grpc", semconv.RPC_SERVICE: service, semconv.RPC_METHOD: name},
    )
    carrier: dict[str, str] = {}
    inject(carrier, context=set_span_in_context(span))
    metadata = grpc.aio.Metadata(*(details.metadata or ()), *carrier.items())
    try:
        call = await continuation(_replace(details, metadata=metadata), request)
    except BaseException:
        span.set_status(Status(StatusCode.ERROR, "not sent"))
        span.end()
        raise
    # Runs at every end of a call: answered, failed, cancelled or past its deadline.
    call.add_done_callback(lambda done: _end(span, done))
    return call


def _replace(details: grpc.aio.ClientCallDetails, **changes: Any) -> grpc.aio.ClientCallDetails:
    return cast(grpc.aio.ClientCallDetails, cast(Any, details)._replace(**changes))


def _end(span: Span, call: grpc.aio.Call) -> None:
    code = _result(call.code())
    if code is not None:
        span.set_attribute(semconv.RPC_STATUS_CODE, code.value[0])
        if code is not grpc.StatusCode.OK:
            span.set_status(Status(StatusCode.ERROR, code.name))
    span.end()


def _result(coroutine: Coroutine[Any, Any, grpc.StatusCode]) -> grpc.StatusCode | None:
    """Return what a coroutine of a call that is done returns: it has nothing left to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        code: grpc.StatusCode = done.value
        return code
    coroutine.close()
    return None
