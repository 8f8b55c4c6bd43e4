"""The demo's phases: each does one thing to the running suite, by the functions that the single commands use too."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import Item, read_interactions, read_items
from gr4ad_core.metrics.sid_quality import sid_quality
from gr4ad_runtime.telemetry import tracer
from numpy.typing import NDArray

from gr4ad_tools import baselines
from gr4ad_tools.demo import arms
from gr4ad_tools.demo.record import GeneratedFor, Record
from gr4ad_tools.evaluation import KS, ScoredLists, ranking_figures
from gr4ad_tools.figures import Figure, percentile
from gr4ad_tools.ingest import to_ad
from gr4ad_tools.leave_one_out import LeaveOneOut, leave_one_out
from gr4ad_tools.live_index import LiveIndexDelays, dead_ads, probe
from gr4ad_tools.otlp_receiver import OtlpReceiver, Span
from gr4ad_tools.tracker import Tracker, report_outcomes
from gr4ad_tools.traffic import Traffic, run_users

USERS = 16
SERVED_BETWEEN_SWAPS_S = 0.5
CANDIDATES = 20
PAGE_SIZE = 5
PROBES = 20
SWAPS = 20
SAMPLE_USERS = 6
TRACE_WAIT_S = 20.0
RPC_TIMEOUT_S = 10.0
BEHAVIORS = {1: "shown", 2: "clicked", 3: "bought"}


def fingerprint(folder: Path) -> str:
    """Return a digest of a data folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("items.jsonl", "interactions.csv")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def load(folder: Path) -> tuple[list[Item], LeaveOneOut]:
    """Read a data folder and split it."""
    return read_items(folder), leave_one_out(read_interactions(folder))


async def read_sids(channel: grpc.aio.Channel, ad_ids: Collection[str]) -> NDArray[np.int64]:
    """Return the SIDs [N, T] of ads under the active codebook, from the catalogue feed."""
    stub = sid_pb2_grpc.SidServiceStub(channel)
    sids: dict[str, tuple[int, ...]] = {}
    async for part in stub.ReadCatalog(sid_pb2.ReadCatalogRequest(until_current=True)):
        for entry in part.entries:
            sids[entry.ad_id] = tuple(entry.sid.codes)
    return np.array([sids[ad_id] for ad_id in ad_ids], dtype=np.int64)


def sid_figures(sids_NT: NDArray[np.int64], level_sizes: Sequence[int]) -> dict[str, Figure]:
    """Return the tokeniser's figures."""
    quality = sid_quality(sids_NT, tuple(level_sizes))
    n = len(sids_NT)
    return {
        "ads": Figure(n, "ads"),
        "cpr": Figure(quality.cpr, "ads per SID", n),
        "col": Figure(quality.col, "share of ads", n),
        "util": Figure(quality.util, "share of SIDs", n),
    }


def baseline_figures(split: LeaveOneOut) -> dict[str, Figure]:
    """Return the ranking figures of popularity and of the transition graph on the same users."""
    histories = baselines.chosen_histories(split.interactions, split.users_M, split.targets_M)
    ranked = {
        "popularity_": baselines.popularity_rank(split.train, max(KS), histories),
        "transition_graph_": baselines.transition_graph_rank(split.train, histories, max(KS)),
    }
    figures: dict[str, Figure] = {}
    for prefix, lists in ranked.items():
        figures |= ranking_figures(lists, split.target_items_M, prefix)
    return figures


def score_figures(split: LeaveOneOut, scored: ScoredLists) -> dict[str, Figure]:
    """Return the policy's ranking figures, on all users and on those whose target came on a later day."""
    later = split.later_day_M
    figures = ranking_figures(scored.ranked, split.target_items_M)
    if 0 < later.sum() < len(later):
        figures |= ranking_figures(scored.ranked[later], split.target_items_M[later], "later_day_")
    return figures


def generated_for(split: LeaveOneOut, scored: ScoredLists, items: Sequence[Item], seed: int) -> list[GeneratedFor]:
    """Draw some users at random and tell their histories and lists by title."""
    titles = {item.item_id: item.title or item.item_id for item in items}
    item_ids, behaviors = split.interactions.item_ids, split.interactions.behaviors
    drawn = sorted(random.Random(seed).sample(range(len(split.users_M)), min(SAMPLE_USERS, len(split.users_M))))
    users = []
    for number in drawn:
        user, target = int(split.users_M[number]), int(split.targets_M[number])
        start = int(split.interactions.offsets[user])
        events = range(max(start, target - 8), target)
        target_id = item_ids[split.interactions.items[target]]
        users.append(
            GeneratedFor(
                user_id=split.interactions.user_ids[user],
                history=[(titles[item_ids[split.interactions.items[e]]], BEHAVIORS[int(behaviors[e])]) for e in events],
                history_length=target - start,
                target=(target_id, titles[target_id]),
                generated=[
                    (
                        ad.ad_id,
                        titles.get(ad.ad_id, ad.ad_id),
                        tuple(ad.sid.codes),
                        ad.log_prob,
                        ad.predicted_ecpm_micros,
                    )
                    for ad in sorted(scored.ads[number], key=lambda ad: -ad.log_prob)[:8]
                ],
            )
        )
    return users


@contextlib.asynccontextmanager
async def _concurrent_users(
    channel: grpc.aio.Channel, contexts: Sequence[type_pb2.UserContext], run_id: str
) -> AsyncIterator[Traffic]:
    """Let concurrent users ask for as long as the block lasts; what is yielded is filled at its end."""
    stop, seen = asyncio.Event(), Traffic()
    # What the run has gathered so far is no garbage: searching it would hold up this process's users, not the server.
    gc.collect()
    gc.freeze()
    asking = asyncio.create_task(
        run_users(channel, contexts, users=USERS, candidate_count=CANDIDATES, run_id=run_id, until=stop)
    )
    try:
        yield seen
    finally:
        stop.set()
        traffic = await asking
        seen.answers, seen.failures, seen.seconds = traffic.answers, traffic.failures, traffic.seconds


async def swap_policies(
    record: Record,
    channels: dict[str, grpc.aio.Channel],
    contexts: Sequence[type_pb2.UserContext],
    policies: Sequence[str],
    run_id: str,
    on_progress: Callable[[float], object],
) -> None:
    """Let concurrent users ask while two policies take turns, each once the other serves; fill the record."""
    training = training_pb2_grpc.TrainingServiceStub(channels["rspo_trainer"])
    generator = generation_pb2_grpc.GenerationServiceStub(channels["ad_generator"])

    async def swaps() -> int:
        status = await generator.GetEngineStatus(generation_pb2.GetEngineStatusRequest(), timeout=RPC_TIMEOUT_S)
        return status.policy_swaps

    before = await swaps()
    async with _concurrent_users(channels["ad_generator"], contexts, f"{run_id}-users") as record.traffic:
        record.traffic_start = time.monotonic()
        for swap in range(SWAPS):
            await asyncio.sleep(SERVED_BETWEEN_SWAPS_S)
            wanted = policies[(swap + 1) % len(policies)]
            await training.ActivatePolicy(
                training_pb2.ActivatePolicyRequest(policy_id=wanted, channel="stable"), timeout=RPC_TIMEOUT_S
            )
            await arms.until_served(channels["ad_generator"], wanted)
            record.swap_times.append(time.monotonic() - record.traffic_start)
            on_progress((swap + 1) / SWAPS)
        await asyncio.sleep(SERVED_BETWEEN_SWAPS_S)
    record.policy_swaps = await swaps() - before


async def change_ads(
    record: Record,
    channels: dict[str, grpc.aio.Channel],
    contexts: Sequence[type_pb2.UserContext],
    items: Sequence[Item],
    run_id: str,
    on_progress: Callable[[float], object],
) -> None:
    """Add and pause ads while as many users ask beside the probes; fill the record."""
    probed = itertools.count(1)
    async with _concurrent_users(channels["ad_generator"], contexts, f"{run_id}-beside") as record.probed_traffic:
        record.delays = await probe(
            channels["sid_assigner"],
            channels["ad_generator"],
            contexts,
            {item.item_id: to_ad(item) for item in items},
            probes=PROBES,
            run_id=f"{run_id}-probe",
            on_probe=lambda: on_progress(next(probed) / PROBES),
        )


def delay_figures(delays: LiveIndexDelays) -> dict[str, Figure]:
    """Return how fast changes of the catalogue show."""
    return {
        "insert_ms_p99": percentile(delays.insert_ms, 99, "ms"),
        "pause_ms_p99": percentile(delays.pause_ms, 99, "ms"),
        "never_generated": Figure(delays.never_generated, "ads", len(delays.insert_ms)),
    }


def traffic_figures(record: Record, asked: Sequence[ScoredLists]) -> dict[str, Figure]:
    """Return the figures of serving: latency, failures in all that was asked, and how fast changes of the ads show."""
    traffic, beside, delays = record.traffic, record.probed_traffic, record.delays
    requests = len(traffic.answers) + traffic.failed
    others = len(beside.answers) + beside.failed + sum(len(lists.ads) for lists in asked)
    failed = traffic.failed + beside.failed + delays.failures.total()
    failed += sum(lists.failures.total() for lists in asked)
    return {
        **delay_figures(delays),
        "dead_ads_returned": Figure(dead_ads(beside.answers, delays.paused_at), "ads", _returned(beside)),
        "qps": Figure(len(traffic.answers) / traffic.seconds, "requests/s", requests),
        "p50_ms": percentile(traffic.latencies_ms, 50, "ms"),
        "p99_ms": percentile(traffic.latencies_ms, 99, "ms"),
        "beside_probes_p99_ms": percentile(beside.latencies_ms, 99, "ms"),
        "failed_requests": Figure(failed, "requests", requests + others),
        "policy_swaps": Figure(record.policy_swaps, "swaps"),
        "swap_failed_requests": Figure(traffic.failed, "requests", requests),
    }


async def report_what_was_shown(
    record: Record, tracker: Tracker, split: LeaveOneOut, items: Sequence[Item]
) -> dict[str, Figure]:
    """Report the traffic's lists as shown, with a conversion where the user's next ad was on the page."""
    bids = {item.item_id: item.bid_micros for item in items}
    targets = [split.interactions.item_ids[item] for item in split.target_items_M]
    shown, responded = await report_outcomes(
        tracker,
        [*record.traffic.answers, *record.probed_traffic.answers],
        page_size=PAGE_SIZE,
        clicked=lambda visit: {targets[visit]},
        bid_micros=lambda ad_id: bids.get(ad_id, 0),
    )
    return {"impressions_logged": Figure(shown, "events"), "feedback_logged": Figure(responded, "events")}


async def log_figures(
    channels: dict[str, grpc.aio.Channel], logged_before: int, restarts: Mapping[str, int]
) -> dict[str, Figure]:
    """Wait until the generators have handed over their lists, and count on both sides what this run served.

    A generator counts from its start: if one was started again, nobody knows what it served before.
    """
    states = await arms.lists_handed_over(channels)
    logged = (await arms.reward_summary(channels["reward_logger"])).served_lists - logged_before
    unknown = any(restarts.get(name) for name in arms.GENERATORS.values())
    served, dropped = (
        math.nan if unknown else sum(getattr(status, name) for status in states)
        for name in ("requests_answered", "lists_dropped")
    )
    return {
        "lists_served": Figure(served, "lists"),
        "lists_logged": Figure(logged, "lists"),
        "lists_dropped": Figure(dropped, "lists"),
    }


async def trace_request(
    receiver: OtlpReceiver, channel: grpc.aio.Channel, context: type_pb2.UserContext, run_id: str
) -> list[Span]:
    """Send one traced request and return its trace, once the reward log's part of it has come."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    with tracer("gr4ad_tools").start_as_current_span("ask for ads") as span:
        await stub.GenerateAds(
            generation_pb2.GenerateAdsRequest(
                request_id=f"{run_id}-traced", user_context=context, candidate_count=CANDIDATES
            ),
            timeout=RPC_TIMEOUT_S,
        )
    return await _trace_with(receiver, span.get_span_context().trace_id, {"ad_generator", "reward_logger"})


async def trace_change(receiver: OtlpReceiver, channel: grpc.aio.Channel, item: Item, run_id: str) -> list[Span]:
    """Add one ad under a trace and return the trace, once the generator's part of it has come."""
    stub = sid_pb2_grpc.SidServiceStub(channel)
    ad = to_ad(item)
    ad.ad_id = f"{run_id}-traced-ad"
    with tracer("gr4ad_tools").start_as_current_span("add an ad") as span:
        await stub.BatchCreateAdSids(
            sid_pb2.BatchCreateAdSidsRequest(request_id=f"{run_id}-traced-ad", ads=[ad]), timeout=RPC_TIMEOUT_S
        )
    return await _trace_with(receiver, span.get_span_context().trace_id, {"sid_assigner", "ad_generator"})


async def trace_learning(receiver: OtlpReceiver, trace_id: str) -> list[Span]:
    """Return the trace that leads from a report of outcomes to the policy that was learned from it and swapped in."""
    if not trace_id:
        return []
    return await _trace_with(receiver, int(trace_id, 16), {"reward_logger", "rspo_trainer", "ad_generator"})


async def _trace_with(receiver: OtlpReceiver, trace_id: int, services: set[str]) -> list[Span]:
    """Wait for a trace that reaches all the services; return what has come when the time is over."""
    name = f"{trace_id:032x}"

    def whole(_: Sequence[Span]) -> bool:
        spans = receiver.trace(name)
        return services <= {span.service for span in spans} and any(not span.parent_id for span in spans)

    with contextlib.suppress(TimeoutError):
        await receiver.wait_for(whole, TRACE_WAIT_S)
    return receiver.trace(name)


def _returned(traffic: Traffic) -> int:
    return sum(len(answer.ad_ids) for answer in traffic.answers)
