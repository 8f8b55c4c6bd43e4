"""The spans of one request, made after the fact from the times that were taken on its way."""

from __future__ import annotations

from gr4ad.generation.v1 import generation_pb2
from gr4ad_runtime import semconv
from gr4ad_runtime.telemetry import tracer
from opentelemetry import trace

from ad_generator.batcher import Batched
from ad_generator.engine import Generated

Origin = generation_pb2.GenerateAdsResponse.Origin


def record_spans(
    request: generation_pb2.GenerateAdsRequest,
    response: generation_pb2.GenerateAdsResponse,
    batched: Batched[Generated] | None,
) -> None:
    """Describe a request in the current span, and its stages in spans below; nothing where the trace is not recorded.

    The stages are those of the whole batch: every request of it waited for all of them. An answer that was not computed
    for this request (`batched` is None) has no stages.
    """
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attributes(
        {
            semconv.REQUEST_ID: request.request_id,
            semconv.CANDIDATES_WANTED: request.candidate_count,
            semconv.CANDIDATES_RETURNED: len(response.candidates),
            semconv.HISTORY_LENGTH: len(request.user_context.history),
            semconv.HISTORY_SKIPPED: response.skipped_history_events,
            semconv.POLICY_ID: response.policy.policy_id,
            semconv.BEAM_WIDTHS: tuple(response.beam_trace.widths),
            semconv.BEAM_SCALE: response.beam_trace.scale,
            semconv.LOAD: response.beam_trace.load,
            semconv.ANSWER_ORIGIN: Origin.Name(response.origin).removeprefix("ORIGIN_").lower(),
        }
    )
    if batched is None:
        return
    generated = batched.result
    span.set_attribute(semconv.BEAM_CONSTRAINED_BY, generated.plan.constrained_by.value)
    spans = tracer(__name__)
    wait = spans.start_span(semconv.SPAN_WAIT_FOR_BATCH, start_time=batched.enqueued_ns)
    wait.end(batched.started_ns)
    batch = spans.start_span(
        semconv.SPAN_GENERATE_BATCH,
        start_time=batched.started_ns,
        attributes={semconv.BATCH_SIZE: batched.batch_size},
    )
    below = trace.set_span_in_context(batch)
    stages = generated.stages
    encoded_ns = stages.started_ns + stages.encode_us * 1000
    spans.start_span(semconv.SPAN_ENCODE_CONTEXT, below, start_time=stages.started_ns).end(encoded_ns)
    search = spans.start_span(semconv.SPAN_BEAM_SEARCH, below, start_time=encoded_ns)
    level_ns = encoded_ns
    for level, took_us in enumerate(stages.level_us, start=1):
        level_ns += took_us * 1000
        search.add_event(f"level {level} done", {"beams": generated.plan.widths[level - 1]}, level_ns)
    search.end(level_ns)
    spans.start_span(semconv.SPAN_SCORE_ADS, below, start_time=level_ns).end(level_ns + stages.ecpm_us * 1000)
    batch.end(batched.finished_ns)
