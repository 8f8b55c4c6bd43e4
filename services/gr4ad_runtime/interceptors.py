"""What every call passes through on the server: status, trace, access log, errors, validation — in this order, outside
in.

Each interceptor is one asynchronous context manager around a call, the same for unary and streaming methods. Methods
that stream their answer are asynchronous generators. Health and reflection pass untouched.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
import structlog
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, Status, StatusCode

from gr4ad_runtime import semconv
from gr4ad_runtime.errors import Gr4adError
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.status_details import status_details
from gr4ad_runtime.validation import validate

# Generic for type checkers only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

PLUMBING = ("/grpc.health.v1.", "/grpc.reflection.")
# The caller's mistakes are no failures of the server's span; these are.
SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Failures of a call that this server makes which its own caller may treat as this server's.
PASSED_ON = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_log = get_logger("access")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Puts `around` around every call. A method's handler is wrapped once, at the method's first call."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    def around(self, method: str, context: ServicerContext) -> AbstractAsyncContextManager[None]:
        """Return what encloses one call."""
        raise NotImplementedError

    def check(self, message: Any) -> None:
        """Look at one message of a request; raising refuses the call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler of a method."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None or method.startswith(PLUMBING):
                return handler
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        behaviour = behaviour_of(handler)

        def incoming(request: Any) -> Any:
            if handler.request_streaming:
                return self._checked(request)
            self.check(request)
            return request

        async def unary(request: Any, context: ServicerContext) -> Any:
            async with self.around(method, context):
                return await behaviour(incoming(request), context)

        async def stream(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
            async with self.around(method, context):
                async for answer in behaviour(incoming(request), context):
                    yield answer

        return with_behaviour(handler, stream if generates_answers(handler) else unary)

    async def _checked(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self.check(request)
            yield request


@dataclass(eq=False)
class CallFailedError(Exception):
    """How a call is to end."""

    code: grpc.StatusCode
    message: str
    details: tuple[tuple[str, bytes], ...] = ()
    """Trailing metadata."""


class StatusInterceptor(CallInterceptor):
    """Sends the status of a call that failed when span and line are written: they tell of it what they tell of an
    answered call, how long it took and not how long the answer was on its way."""

    @asynccontextmanager
    async def around(self, method: str, context: ServicerContext) -> AsyncIterator[None]:
        """Enclose a call that ends as a `CallFailedError` says."""
        try:
            yield
        except CallFailedError as failed:
            await context.abort(failed.code, failed.message, failed.details)


class TraceInterceptor(CallInterceptor):
    """Opens a server span under the caller's trace."""

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        super().__init__()
        self._tracer = trace.get_tracer("gr4ad_runtime", tracer_provider=tracer_provider)

    @asynccontextmanager
    async def around(self, method: str, context: ServicerContext) -> AsyncIterator[None]:
        """Enclose a call in a span that becomes the current one."""
        carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        service, _, name = method[1:].rpartition("/")
        span = self._tracer.start_span(
            method[1:],
            context=extract(carrier),
            kind=SpanKind.SERVER,
            attributes={semconv.RPC_SYSTEM: "grpc", semconv.RPC_SERVICE: service, semconv.RPC_METHOD: name},
        )
        # Never detached: a call has a task, hence a context, of its own. A generator that is dropped half-way could
        # not detach, for it is closed in another.
        otel_context.attach(trace.set_span_in_context(span))
        code = grpc.StatusCode.OK
        try:
            yield
            code = status_of(context)
        except BaseException as error:
            code = status_of(context, error)
            raise
        finally:
            span.set_attribute(semconv.RPC_STATUS_CODE, code.value[0])
            if code in SERVER_FAULTS:
                span.set_status(Status(StatusCode.ERROR, code.name))
            span.end()


class AccessLogInterceptor(CallInterceptor):
    """Writes one line and one measurement per call; a call that succeeds is a line at DEBUG only, there are so many.

    What a servicer binds with `structlog.contextvars.bind_contextvars` is part of the line.
    """

    def __init__(self, meter_provider: metrics.MeterProvider | None = None) -> None:
        super().__init__()
        self._duration = metrics.get_meter("gr4ad_runtime", meter_provider=meter_provider).create_histogram(
            semconv.METRIC_CALL_DURATION, unit="s", description="Time a call takes in the server."
        )

    @asynccontextmanager
    async def around(self, method: str, context: ServicerContext) -> AsyncIterator[None]:
        """Time a call."""
        start = time.perf_counter()
        code = grpc.StatusCode.OK
        try:
            yield
            code = status_of(context)
        except BaseException as error:
            code = status_of(context, error)
            raise
        finally:
            seconds = time.perf_counter() - start
            service, _, name = method[1:].rpartition("/")
            self._duration.record(
                seconds,
                {semconv.RPC_SERVICE: service, semconv.RPC_METHOD: name, semconv.RPC_STATUS_CODE: code.value[0]},
            )
            write = _log.warning if code in SERVER_FAULTS else _log.info
            if code is grpc.StatusCode.OK:
                write = _log.debug
            write("call", method=method[1:], code=code.name, duration_ms=round(1000.0 * seconds, 3))


class ErrorInterceptor(CallInterceptor):
    """Turns errors into statuses: the only place that does."""

    @asynccontextmanager
    async def around(self, method: str, context: ServicerContext) -> AsyncIterator[None]:
        """Enclose a call and tell by a `CallFailedError` how it is to end where it raises."""
        try:
            yield
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Gr4adError as error:
            if error.field:
                structlog.contextvars.bind_contextvars(error_field=error.field)
            if error.code in SERVER_FAULTS:
                _log.error("call failed", method=method[1:], error=error.message)
            raise CallFailedError(error.code, error.message, status_details(error)) from error
        except grpc.aio.AioRpcError as error:
            code = error.code() if error.code() in PASSED_ON else grpc.StatusCode.INTERNAL
            _log.error("call to another service failed", method=method[1:], error=str(error.details()))
            message = f"a call to another service failed: {error.code().name}: {error.details()}"
            raise CallFailedError(code, message) from error
        except Exception as error:
            _log.exception("call crashed", method=method[1:])
            message = f"internal error; the log has it under {_trace_name()}"
            raise CallFailedError(grpc.StatusCode.INTERNAL, message) from error


class ValidationInterceptor(CallInterceptor):
    """Refuses messages that break the rules of their contract."""

    def around(self, method: str, context: ServicerContext) -> AbstractAsyncContextManager[None]:
        """Add nothing; messages are looked at one by one."""
        return nullcontext()

    def check(self, message: Any) -> None:
        """Check a message against its protovalidate rules."""
        validate(message)


def server_interceptors(*inner: grpc.aio.ServerInterceptor) -> Sequence[grpc.aio.ServerInterceptor]:
    """Return the interceptors of a server, the outermost first; `inner` ones come last."""
    own = [StatusInterceptor(), TraceInterceptor(), AccessLogInterceptor(), ErrorInterceptor(), ValidationInterceptor()]
    return [*own, *inner]


def behaviour_of(handler: Handler) -> Callable[..., Any]:
    """Return the servicer's method behind a handler."""
    return cast(
        Callable[..., Any],
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream,
    )


def generates_answers(handler: Handler) -> bool:
    """Tell whether a method is an asynchronous generator; a coroutine that streams writes to the context itself."""
    return bool(handler.response_streaming) and not inspect.iscoroutinefunction(behaviour_of(handler))


def with_behaviour(handler: Handler, behaviour: Callable[..., Any]) -> Handler:
    """Return a handler like `handler` with another method behind it."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(handler.request_streaming, handler.response_streaming)]
    made: Handler = make(behaviour, handler.request_deserializer, handler.response_serializer)
    return made


def status_of(context: ServicerContext, error: BaseException | None = None) -> grpc.StatusCode:
    """Return the status a call ends with."""
    if isinstance(error, CallFailedError):
        return error.code
    stated = context.code()
    code = stated if isinstance(stated, grpc.StatusCode) else _CODES.get(stated or 0, grpc.StatusCode.UNKNOWN)
    if error is None or code is not grpc.StatusCode.OK:
        return code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN


def _trace_name() -> str:
    context = trace.get_current_span().get_span_context()
    return f"trace {trace.format_trace_id(context.trace_id)}" if context.is_valid else "the time of the call"
