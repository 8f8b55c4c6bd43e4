"""Structured logs: JSON lines on stdout, each with the trace it belongs to. Never user features."""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger


def configure_logging(service: str, level: str = "INFO") -> None:
    """Send structured and standard-library logs to stdout as JSON, one object a line.

    Args:
        service: Name put into every line.
        level: Least level written: DEBUG, INFO, WARNING or ERROR.
    """
    number = logging.getLevelNamesMapping()[level]

    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        _add_trace,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.dict_tracebacks,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    # Libraries talk at INFO about things that are no news to an operator.
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger whose lines carry `name` as `logger`."""
    return cast(FilteringBoundLogger, structlog.get_logger().bind(logger=name))


def _add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def flush() -> None:
    """Write buffered lines out; stdout is block-buffered when it is a file."""
    cast(Any, sys.stdout).flush()
