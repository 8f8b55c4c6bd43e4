"""Traces and metrics of the generator: one trace from the caller to the reward log, one from a change to the index."""

from __future__ import annotations

from gr4ad_runtime import semconv, telemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.ad_generator.neighbours import PAUSED, eventually
from tests.ad_generator.policies import publish
from tests.ad_generator.suite import Suite, request

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{CALLER}-01"


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return trace.format_trace_id(span.context.trace_id)


async def test_a_request_is_one_trace_down_to_the_reward_log(spans: InMemorySpanExporter, suite: Suite) -> None:
    asked = request(["ad-0-1-2", "gone"], 4)
    await suite.stub.GenerateAds(asked, metadata=[("traceparent", SAMPLED)])
    (server,) = named(spans, "gr4ad.generation.v1.GenerationService/GenerateAds")
    assert trace_id(server) == TRACE
    assert server.attributes is not None
    assert server.attributes[semconv.REQUEST_ID] == asked.request_id
    assert server.attributes[semconv.CANDIDATES_RETURNED] == 4
    assert server.attributes[semconv.HISTORY_SKIPPED] == 1
    assert server.attributes[semconv.BEAM_WIDTHS] == (3, 6, 10)
    edges = {
        semconv.SPAN_WAIT_FOR_BATCH: server,
        semconv.SPAN_GENERATE_BATCH: server,
        semconv.SPAN_ENCODE_CONTEXT: named(spans, semconv.SPAN_GENERATE_BATCH)[0],
        semconv.SPAN_BEAM_SEARCH: named(spans, semconv.SPAN_GENERATE_BATCH)[0],
        semconv.SPAN_SCORE_ADS: named(spans, semconv.SPAN_GENERATE_BATCH)[0],
    }
    for name, parent in edges.items():
        (span,) = named(spans, name)
        assert span.parent is not None
        assert parent.context is not None
        assert span.parent.span_id == parent.context.span_id
        assert parent.start_time - 1_000_000 <= span.start_time <= span.end_time <= parent.end_time + 1_000_000
    (search,) = named(spans, semconv.SPAN_BEAM_SEARCH)
    assert [event.attributes["beams"] for event in search.events] == [3, 6, 10]

    rewards = suite.neighbours.rewards
    await eventually(lambda: asked.request_id in rewards.lists, "the list is stored")
    _, carried_trace, carried_parent, flags = rewards.lists[asked.request_id].traceparent.split("-")
    assert (carried_trace, flags) == (TRACE, "01")
    assert carried_parent == trace.format_span_id(server.context.span_id)


async def test_a_change_is_seen_in_the_trace_that_made_it(spans: InMemorySpanExporter, suite: Suite) -> None:
    catalogue = suite.neighbours.catalogue
    other = SAMPLED.replace(CALLER, "00f067aa0ba902b7")
    unsampled = SAMPLED.replace(TRACE, "1" * 32).replace("-01", "-00")
    for number, traceparent in enumerate((SAMPLED, SAMPLED, other, unsampled, "", "broken")):
        cursor = catalogue.put(f"ad-{number % 4}-0-0", (number % 4, 0, 0), PAUSED, traceparent)
    await suite.reaches(lambda status: status.catalog_cursor == cursor, "the changes are indexed")
    applied = named(spans, semconv.SPAN_APPLY_CATALOG_CHANGES)
    assert sorted(trace.format_span_id(span.parent.span_id) for span in applied) == ["00f067aa0ba902b7", CALLER]
    assert {trace_id(span) for span in applied} == {TRACE}
    assert all(span.end_time > span.start_time for span in applied)


async def test_a_swap_is_seen_in_the_trace_of_its_activation(spans: InMemorySpanExporter, suite: Suite) -> None:
    suite.neighbours.channel.activate(publish(suite.neighbours.store_url, "second", seed=2), SAMPLED)
    await suite.serves("second")
    (swap,) = (span for span in named(spans, semconv.SPAN_SWAP_POLICY) if trace_id(span) == TRACE)
    assert swap.parent is not None
    assert trace.format_span_id(swap.parent.span_id) == CALLER
    assert swap.attributes is not None
    assert swap.attributes[semconv.POLICY_ID] == "second"


async def test_untraced_requests_carry_an_empty_or_unsampled_trace(suite: Suite) -> None:
    asked = request(["ad-0-1-2"])
    await suite.stub.GenerateAds(asked, metadata=[("traceparent", SAMPLED.replace("-01", "-00"))])
    rewards = suite.neighbours.rewards
    await eventually(lambda: asked.request_id in rewards.lists, "the list is stored")
    assert telemetry.context_of(rewards.lists[asked.request_id].traceparent) is not None
    assert not rewards.lists[asked.request_id].traceparent.endswith("01")
