from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from gr4ad_runtime.log import configure_logging, get_logger
from gr4ad_runtime.telemetry import tracer
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@pytest.fixture(autouse=True)
def _own_configuration() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_an_object_with_its_trace(capsys: pytest.CaptureFixture[str], spans: InMemorySpanExporter) -> None:
    log = get_logger("early")  # modules make theirs before the configuration
    configure_logging("sample", "INFO")
    with tracer("test").start_as_current_span("work") as span:
        log.info("stored", ads=3)
    log.debug("not shown")
    [line] = lines(capsys)
    assert {key: line[key] for key in ("event", "ads", "service", "module", "level")} == {
        "event": "stored",
        "ads": 3,
        "service": "sample",
        "module": "early",
        "level": "info",
    }
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert line["timestamp"].endswith("Z")


def test_a_traceback_holds_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("sample")

    def fail() -> None:
        user_feature = "lives in " + "Atlantis"
        raise ValueError(len(user_feature))

    try:
        fail()
    except ValueError:
        get_logger("x").exception("crashed")
    text = capsys.readouterr().out
    assert "Atlantis" not in text
    [line] = [json.loads(text)]
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert line["exception"][0]["frames"][-1]["name"] == "fail"


def test_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("sample", "DEBUG")
    configure_logging("sample", "DEBUG")  # a second time adds no second handler
    logging.getLogger("library").warning("watch %s", "out")
    logging.getLogger("library").info("chatter")
    [line] = lines(capsys)
    assert (line["event"], line["logger"], line["service"]) == ("watch out", "library", "sample")
