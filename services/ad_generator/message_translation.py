"""Between the contract's messages and the engine's arrays."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Final

import numpy as np
from gr4ad.generation.v1 import generation_pb2
from gr4ad_core.decoding.beam_schedule import Constraint

from ad_generator.engine import Generated, Query

CONSTRAINTS: Final = {
    Constraint.SCHEDULE: generation_pb2.BeamTrace.CONSTRAINT_SCHEDULE,
    Constraint.LIVE_PREFIXES: generation_pb2.BeamTrace.CONSTRAINT_LIVE_PREFIXES,
    Constraint.IDLE: generation_pb2.BeamTrace.CONSTRAINT_IDLE,
    Constraint.LOAD: generation_pb2.BeamTrace.CONSTRAINT_LOAD,
    Constraint.LATENCY_BUDGET: generation_pb2.BeamTrace.CONSTRAINT_LATENCY_BUDGET,
}
UNKNOWN_TIME: Final = float("nan")


def query_of(request: generation_pb2.GenerateAdsRequest) -> Query:
    """Translate a valid request."""
    context = request.user_context
    history = context.history
    return Query(
        ad_ids=[event.ad_id for event in history],
        behaviors=np.fromiter((event.behavior for event in history), np.int64, len(history)),
        event_times=np.fromiter(
            (
                event.event_time.seconds + event.event_time.nanos * 1e-9
                if event.HasField("event_time")
                else UNKNOWN_TIME
                for event in history
            ),
            np.float64,
            len(history),
        ),
        request_time=(
            context.request_time.seconds + context.request_time.nanos * 1e-9
            if context.HasField("request_time")
            else time.time()
        ),
        features=dict(context.features),
        candidate_count=request.candidate_count,
    )


def response_of(generated: Generated, shown: Container[int]) -> generation_pb2.GenerateAdsResponse:
    """Translate an answer, leaving out the ads whose slots are not in `shown`."""
    response = generation_pb2.GenerateAdsResponse(
        policy=generated.policy.ref,
        beam_trace=generation_pb2.BeamTrace(
            widths=generated.plan.widths,
            level_us=generated.stages.level_us,
            constrained_by=CONSTRAINTS[generated.plan.constrained_by],
            scale=generated.scale,
            load=generated.load,
        ),
        skipped_history_events=generated.skipped_events,
    )
    ad_ids, add = generated.table.ad_ids, response.candidates.add
    rows = zip(generated.slots, generated.sids, generated.log_probs, generated.ecpm_micros, strict=True)
    for slot, codes, log_prob, ecpm_micros in rows:
        if slot in shown:  # filled in place, since a message that is handed over is copied
            candidate = add()
            candidate.ad_id = ad_ids[slot]
            candidate.sid.codes.extend(codes)
            candidate.log_prob = log_prob
            candidate.predicted_ecpm_micros = ecpm_micros
    return response
