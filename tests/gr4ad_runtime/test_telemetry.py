from __future__ import annotations

import asyncio

import pytest
from gr4ad_runtime.settings import ServiceSettings
from gr4ad_runtime.telemetry import configure_telemetry, context_of, current_traceparent, tracer
from gr4ad_tools.otlp_receiver import OtlpReceiver
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


async def test_spans_and_metrics_reach_the_collector(spans: InMemorySpanExporter) -> None:
    async with OtlpReceiver() as receiver:
        telemetry = configure_telemetry("sample", ServiceSettings(otlp_endpoint=receiver.endpoint))
        own = telemetry.tracer_provider.get_tracer("test")
        with own.start_as_current_span("cause", attributes={"count": 3, "widths": [1, 2]}) as cause:
            pass
        link = trace.Link(cause.get_span_context())
        with own.start_as_current_span("outer"), own.start_as_current_span("inner", links=[link]) as inner:
            inner.set_status(trace.StatusCode.ERROR)
        telemetry.meter_provider.get_meter("test").create_counter("gr4ad.test").add(1)
        found = await receiver.wait_for(lambda spans: len(spans) == 3)
        by_name = {span.name: span for span in found}
        await asyncio.to_thread(telemetry.shutdown)
        assert ("sample", "gr4ad.test") in receiver.metric_names
    assert by_name["inner"].parent_id == by_name["outer"].span_id
    assert by_name["outer"].parent_id == ""
    assert by_name["inner"].links == ((by_name["cause"].trace_id, by_name["cause"].span_id),)
    assert by_name["cause"].attributes == {"count": 3, "widths": [1, 2]}
    assert by_name["cause"].service == "sample"
    assert by_name["outer"].start_ns <= by_name["inner"].start_ns <= by_name["inner"].end_ns <= by_name["outer"].end_ns
    assert (by_name["inner"].ok, by_name["outer"].ok) == (False, True)
    assert [span.name for span in receiver.trace(by_name["outer"].trace_id)] == ["outer", "inner"]


def test_the_caller_decides_what_is_recorded() -> None:
    telemetry = configure_telemetry("sample", ServiceSettings(trace_sample_ratio=0.0))
    own = telemetry.tracer_provider.get_tracer("test")
    assert not own.start_span("root").is_recording()
    recorded = context_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert own.start_span("child", context=recorded).is_recording()
    telemetry.shutdown()


def test_a_traceparent_carries_a_trace(spans: InMemorySpanExporter) -> None:
    assert current_traceparent() == ""
    with tracer("test").start_as_current_span("cause") as cause:
        carried = current_traceparent()
        with tracer("test").start_as_current_span("effect", context=context_of(carried)):
            pass
    effect = spans.get_finished_spans()[0]
    assert effect.parent is not None
    assert effect.parent.span_id == cause.get_span_context().span_id
    assert len(carried) == 55


@pytest.mark.parametrize("broken", ["", "00-zz-zz-01", "nonsense"])
def test_a_broken_traceparent_starts_a_trace(broken: str) -> None:
    assert not trace.get_current_span(context_of(broken)).get_span_context().is_valid
