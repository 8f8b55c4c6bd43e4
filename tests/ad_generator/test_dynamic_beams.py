"""Dynamic beams in a running generator: what an answer says of its widths, and what overload gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from ad_generator.ad_table import AdTable
from ad_generator.engine import Engine, LoadedPolicy, Query
from google.rpc import error_details_pb2, status_pb2
from gr4ad.generation.v1.generation_pb2 import BeamTrace
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.decoding.beam_schedule import BeamScale, Constraint, scaled_widths, scheduled_widths
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.history import UserHistory
from gr4ad_runtime.status_details import METADATA_KEY

from tests.ad_generator.policies import random_model
from tests.ad_generator.suite import ALL_SIDS, Neighbours, Suite, run_ready_generator

BASE = (2, 4, 8)


@pytest.fixture
async def suite(neighbours: Neighbours) -> AsyncIterator[Suite]:
    """A generator whose widths follow the load, narrow enough that live prefixes never bound them."""
    values = {"beam_widths": BASE, "beam_scale_min": 0.25, "beam_scale_max": 1.6}
    async with run_ready_generator(neighbours, **values, result_cache_seconds=0) as running:  # requests are alike
        yield running


def says_its_widths(trace: BeamTrace, count: int) -> bool:
    return tuple(trace.widths) == scaled_widths(scheduled_widths(BASE, count), trace.scale, count)


async def test_an_idle_engine_widens_and_says_so(suite: Suite) -> None:
    trace = (await suite.ask(["ad-0-1-2"])).beam_trace
    assert (list(trace.widths), trace.constrained_by) == ([4, 7, 13], BeamTrace.CONSTRAINT_IDLE)
    assert trace.scale == pytest.approx(1.6)
    assert 0.0 < trace.load < 0.5


async def test_little_time_narrows_and_the_answer_says_so(suite: Suite) -> None:
    reasons, refusals, budget_us = set(), set(), 40_000.0
    while budget_us > 200 and BeamTrace.CONSTRAINT_LATENCY_BUDGET not in reasons:
        budget_us *= 0.9
        try:
            answer = await suite.ask(["ad-0-1-2"], 5, latency_budget_us=int(budget_us))
        except grpc.aio.AioRpcError as refused:
            refusals.add(refused.code())
            continue
        trace = answer.beam_trace
        assert says_its_widths(trace, 5)
        assert len(answer.candidates) == 5
        assert (trace.scale < 1.0) == (trace.constrained_by == BeamTrace.CONSTRAINT_LATENCY_BUDGET)
        reasons.add(trace.constrained_by)
    assert BeamTrace.CONSTRAINT_LATENCY_BUDGET in reasons
    assert refusals <= {grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_a_crowd_narrows_first_and_is_refused_with_a_hint_when_there_is_no_hope(suite: Suite) -> None:
    log_probs = every_log_prob("ad-0-1-2")
    reasons, refusals, budget_us = set(), [], 400_000

    async def ask() -> None:
        try:
            answer = await suite.ask(["ad-0-1-2"], 5, latency_budget_us=budget_us)
        except grpc.aio.AioRpcError as refused:
            refusals.append(refused)
            return
        assert says_its_widths(answer.beam_trace, 5)
        for ad in answer.candidates:  # true at any widths
            assert ad.log_prob == pytest.approx(log_probs[ad.ad_id], abs=1e-5)
        reasons.add(answer.beam_trace.constrained_by)

    def hints() -> list[int]:
        return [retry_delay_us(each) for each in refusals if each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]

    while not hints() or BeamTrace.CONSTRAINT_LOAD not in reasons:
        await asyncio.gather(*(ask() for _ in range(100)))
        budget_us = int(0.8 * budget_us)
        assert budget_us > 1000, (reasons, len(refusals))
    assert min(hints()) > 0
    assert {each.code() for each in refusals} <= {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    assert (await suite.ask(["ad-0-1-2"])).candidates


def every_log_prob(clicked: str) -> dict[str, float]:
    model = random_model(seed=1)
    sids = np.array([[int(code) for code in clicked.split("-")[1:]]])
    user = UserHistory(sids, np.full(1, 2), np.full(1, np.nan), request_time=1_700_000_000.0)
    with torch.inference_mode():
        context = model.encode_context(collate_contexts([user], model.config))
        found = model.sid_log_probs(context, torch.tensor(ALL_SIDS)[None])[0].tolist()
    return {"ad-" + "-".join(map(str, sid)): log_prob for sid, log_prob in zip(ALL_SIDS, found, strict=True)}


def retry_delay_us(refused: grpc.aio.AioRpcError) -> int:
    metadata: dict[str, Any] = dict(refused.trailing_metadata())
    for detail in status_pb2.Status.FromString(metadata[METADATA_KEY]).details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return int(retry.retry_delay.ToMicroseconds())
    raise AssertionError("no RetryInfo")


class WidthsOnly:
    """A process that notes at which widths it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def decode(self, table: AdTable, widths: tuple[int, ...], histories: Any, wanted: int) -> Any:
        self.asked.append((widths, len(histories)))
        raise InterruptedError


@pytest.mark.parametrize(
    ("counts", "first"), [((5, 5), ((8, 16, 32), 2)), ((5, 100), ((8, 16, 100), 2)), ((5, 256), ((8, 16, 32), 1))]
)
def test_requests_of_one_schedule_share_a_search_wide_enough_for_all(
    counts: tuple[int, ...], first: tuple[tuple[int, ...], int]
) -> None:
    table, process = AdTable((4, 4, 4)), WidthsOnly()
    table.apply([sid_pb2.CatalogEntry(ad_id="a", sid=type_pb2.SemanticId(codes=[1, 2, 3]))])
    queries = [Query([], np.zeros(0, np.int64), np.zeros(0), 0.0, {}, count) for count in counts]
    policy: Any = LoadedPolicy(type_pb2.PolicyRef(), process)  # type: ignore[arg-type]
    with pytest.raises(InterruptedError):
        Engine((32, 64, 128), 1.0).generate(policy, table, queries, BeamScale(0.25, Constraint.LOAD))
    assert process.asked == [first]
