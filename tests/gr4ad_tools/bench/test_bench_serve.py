"""The benchmark of a running generator: the schedule that the client keeps, the accounting, a tiny run of it all."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.sid.v1 import sid_pb2
from gr4ad.training.v1 import training_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.errors import ResourceExhaustedError
from gr4ad_runtime.status_details import status_details
from gr4ad_tools.bench import app
from gr4ad_tools.bench.beam_simulation import poisson_arrivals
from gr4ad_tools.bench.serve import stage
from gr4ad_tools.bench.serve.accounting import (
    METHOD,
    Load,
    failed,
    growth_pct,
    over_fixed,
    refusal_ms,
    relative_value,
)
from gr4ad_tools.bench.serve.churn import Churn
from gr4ad_tools.bench.serve.client import Outcome, Target, closed_loop, open_loop
from gr4ad_tools.bench.serve.session import background
from gr4ad_tools.bench.serve.swaps import PolicySwaps, swaps_seen
from gr4ad_tools.process_guard import guarded_process
from typer.testing import CliRunner

from tests.gr4ad_tools.bench.tiny_run import interrupted, run_tiny

ADS = tuple(f"ad-{number}" for number in range(50))
HELD_S = 0.3
RETRY_S = 0.05


class SlowGenerator(generation_pb2_grpc.GenerationServiceServicer):
    """Answers each request after a while, several at a time; refuses every third user with a hint."""

    def __init__(self) -> None:
        self.asked: list[generation_pb2.GenerateAdsRequest] = []

    async def GenerateAds(self, request: generation_pb2.GenerateAdsRequest, context: Any) -> Any:
        self.asked.append(request)
        if int(request.user_context.user_id.removeprefix("user-")) % 3 == 2:
            error = ResourceExhaustedError("queue", 1, "later", retry_after_s=RETRY_S)
            await context.abort(error.code, error.message, status_details(error))
        await asyncio.sleep(HELD_S)
        return generation_pb2.GenerateAdsResponse(
            candidates=[
                type_pb2.ScoredAd(ad_id="ad-1", log_prob=math.log(0.5), predicted_ecpm_micros=100),
                type_pb2.ScoredAd(ad_id="ad-2", log_prob=math.log(0.25), predicted_ecpm_micros=40),
            ],
            beam_trace=generation_pb2.BeamTrace(scale=0.5),
        )

    async def GetEngineStatus(self, request: Any, context: Any) -> Any:
        raise AssertionError("nobody asks for it")


@contextmanager
def slow_generator() -> Iterator[tuple[SlowGenerator, Target]]:
    """Serve from a loop in another thread: the client brings one of its own."""
    servicer, ready, done, ports = SlowGenerator(), threading.Event(), threading.Event(), list[int]()

    async def serve() -> None:
        server = grpc.aio.server()
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        ready.set()
        await asyncio.to_thread(done.wait)
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10.0)
        yield servicer, Target(f"127.0.0.1:{ports[0]}", ADS, 4, 2, 0.1, 7)
    finally:
        done.set()
        thread.join()


def outcome(user: int = 0, code: str = "OK", due: float = 0.0, latency_s: float = 0.05, **values: Any) -> Outcome:
    return Outcome(user, due, due, due + latency_s, code, **values)


def test_arrivals_wait_for_no_answer() -> None:
    arrivals = [0.0, 0.01, 0.02, 0.05, 0.1]
    with slow_generator() as (servicer, target):
        outcomes = open_loop(target, "run", arrivals, first_user=10)
    assert [each.user for each in outcomes] == [10, 11, 12, 13, 14]
    assert [each.scheduled - outcomes[0].scheduled for each in outcomes] == pytest.approx(arrivals)
    assert all(each.sent >= each.scheduled for each in outcomes)
    # The last was sent before the first was answered: nobody waited.
    assert max(each.sent for each in outcomes) < outcomes[0].received
    assert [each.code for each in outcomes] == ["OK", "RESOURCE_EXHAUSTED", "OK", "OK", "RESOURCE_EXHAUSTED"]
    assert outcomes[1].retry_s == pytest.approx(RETRY_S)
    assert outcomes[0].value == pytest.approx(60.0)
    assert outcomes[0].ad_ids == ("ad-1", "ad-2")
    assert outcomes[0].scale == 0.5
    assert len({request.request_id for request in servicer.asked}) == len(arrivals)


def test_a_late_client_is_counted_from_the_schedule() -> None:
    late = Outcome(0, scheduled=1.0, sent=1.5, received=1.6, code="OK")
    assert late.behind_s == pytest.approx(0.5)
    assert late.latency_s == pytest.approx(0.6)


def test_users_of_a_closed_loop_wait_for_answers() -> None:
    with slow_generator() as (_, target):
        outcomes = closed_loop(target, "run", [0, 1, 3, 4, 6], at_a_time=2, seconds=60.0)
    assert sorted(each.user for each in outcomes) == [0, 1, 3, 4, 6]
    for moment in [each.sent for each in outcomes]:
        assert sum(each.sent <= moment < each.received for each in outcomes) <= 2


def test_an_interrupt_ends_a_load_under_way() -> None:
    with slow_generator() as (_, target), pytest.raises(KeyboardInterrupt), guarded_process() as client:
        pid = client.submit(os.getpid).result()
        load = client.submit(open_loop, target, "run", [0.0, 3600.0], 0)
        while not load.running():
            time.sleep(0.01)
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_users_differ_and_repeat_themselves() -> None:
    target = Target("", ADS, 4, 2, 0.1, 7)
    assert target.request("a", 1).user_context == target.request("b", 1).user_context
    assert target.request("a", 1).request_id != target.request("b", 1).request_id
    assert target.request("a", 1).user_context.history != target.request("a", 2).user_context.history
    assert target.request("a", 1).latency_budget_us == 100_000


def test_only_settled_requests_count() -> None:
    arrivals = poisson_arrivals(lambda _: 50.0, 50.0, 10.0, np.random.default_rng(0))
    outcomes = [outcome(user, due=100.0 + arrival) for user, arrival in enumerate(arrivals)]
    load = Load.settled(outcomes, arrivals, 10.0, 0.1)
    assert len(load.outcomes) == sum(arrival >= 2.0 for arrival in arrivals)
    assert load.seconds == 8.0


def test_accounts_for_every_request() -> None:
    outcomes = [
        *(outcome(latency_s=0.05, scale=0.5) for _ in range(6)),
        *(outcome(latency_s=0.2, scale=1.0) for _ in range(2)),  # answered, too late
        outcome(code="RESOURCE_EXHAUSTED"),
        outcome(code="DEADLINE_EXCEEDED"),
        *(outcome(code="INTERNAL") for _ in range(2)),
    ]
    found = Load(outcomes, 2.0, 0.1).figures("at_50")
    assert found["answered_share_at_50"].value == 6 / 12
    assert found["refused_share_at_50"].value == 1 / 12
    assert found["client_refused_ms_p99_at_50"].n == 1
    assert found["in_budget_rps_at_50"].value == 3.0
    assert found["offered_rps_at_50"].value == 6.0
    assert found["p99_ms_at_50"].value == pytest.approx(200.0)
    assert found["p99_ms_at_50"].n == 8
    assert found["scale_at_50"].value == 5 / 8
    assert failed(outcomes) == 2


def test_compares_with_fixed_widths_at_the_loads_of_both() -> None:
    adaptive = [Load([outcome()] * 30, 2.0, 0.1).figures(f"at_{load}") for load in (100, 150)]
    fixed = Load([outcome()] * 20 + [outcome(latency_s=0.3)] * 10, 2.0, 0.1).figures("fixed_at_150")
    found = over_fixed({**adaptive[0], **adaptive[1], **fixed}, [150])
    assert {name: figure.value for name, figure in found.items()} == {"adaptive_over_fixed_at_150": 1.5}


def test_value_is_relative_to_the_same_users() -> None:
    outcomes = [outcome(1, value=8.0), outcome(2, value=1.0), outcome(3, value=50.0)]
    full = [outcome(2, value=2.0), outcome(1, value=10.0), outcome(3, code="INTERNAL")]
    found = relative_value(outcomes, full)
    assert found.value == pytest.approx(9.0 / 12.0)
    assert found.n == 2


def test_reads_refusals_of_the_access_log() -> None:
    calls = [
        (METHOD, "RESOURCE_EXHAUSTED", 0.4),
        (METHOD, "DEADLINE_EXCEEDED", 90.0),
        ("other", "RESOURCE_EXHAUSTED", 7),
    ]
    lines = [json.dumps({"event": "call", "method": m, "code": c, "duration_ms": ms}) for m, c, ms in calls]
    assert refusal_ms([*lines, "not JSON at all"]) == [0.4]


def test_growth_leaves_the_warm_up_out() -> None:
    assert growth_pct([1.0] * 20 + [100.0] * 40 + [110.0] * 40).value == pytest.approx(10.0)
    assert growth_pct([100.0] * 50).value == 0.0
    assert math.isnan(growth_pct([]).value)


class Assigner:
    """Takes changes of ads and keeps them."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.paused: list[str] = []

    async def BatchCreateAdSids(self, request: sid_pb2.BatchCreateAdSidsRequest, timeout: float) -> None:
        self.created += [ad.ad_id for ad in request.ads]

    async def UpdateAd(self, request: sid_pb2.UpdateAdRequest, timeout: float) -> None:
        assert request.state == sid_pb2.AD_STATE_PAUSED
        self.paused.append(request.ad_id)


def test_churn_pauses_what_was_returned_and_knows_what_may_be() -> None:
    assigner = Assigner()
    spare = (sid_pb2.Ad(ad_id=f"new-{number}") for number in count())
    stub: Any = assigner
    churn = Churn(stub, ADS, spare, per_s=200.0, seed=0)
    churn.saw([outcome(ad_ids=("ad-1", "ad-2"))])

    async def run() -> None:
        async with background(churn.run()):
            while len(assigner.paused) < 2:
                await asyncio.sleep(0.005)

    asyncio.run(run())
    assert sorted(assigner.paused) == ["ad-1", "ad-2"]
    assert assigner.created[:2] == ["new-0", "new-1"]
    now = time.monotonic()
    assert churn.invalid([outcome(due=now, ad_ids=("ad-1", "ad-3", "new-0"))]) == 0  # the pause is a moment old
    assert churn.invalid([outcome(due=now + 2.0, ad_ids=("ad-1", "ad-3", "new-0"))]) == 1
    assert churn.invalid([outcome(due=now, ad_ids=("no-such-ad",))]) == 1
    assert churn.invalid([outcome(due=now - 60.0, ad_ids=("new-0",))]) == 1  # before it was created


def test_policies_become_current_in_turn() -> None:
    made_current: list[str] = []

    class Trainer:
        async def ActivatePolicy(self, request: training_pb2.ActivatePolicyRequest, timeout: float) -> None:
            made_current.append(request.policy_id)

    async def run(per_minute: float) -> PolicySwaps:
        swaps = PolicySwaps(cast(Any, Trainer()), per_minute)
        async with background(swaps.run()):
            await asyncio.sleep(0.2)
        return swaps

    assert asyncio.run(run(0.0)).asked == 0
    swaps = asyncio.run(run(6000.0))
    assert swaps.asked == len(made_current) >= 3
    first, second = stage.POLICY_IDS
    assert made_current[:3] == [second, first, second]


def test_a_swap_is_seen_in_the_order_of_the_answers() -> None:
    answers = [
        outcome(due=3.0, policy_id="b"),
        outcome(due=1.0, policy_id="a"),
        outcome(due=2.0, code="RESOURCE_EXHAUSTED"),
        outcome(due=4.0, policy_id="a"),
        outcome(due=5.0, policy_id="a"),
    ]
    assert swaps_seen(answers) == 2


def test_what_fails_in_the_background_comes_out() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def run() -> None:
        async with background(fail()):
            await asyncio.sleep(0.01)

    with pytest.raises(ValueError, match="no"):
        asyncio.run(run())


OPTIONS = {
    "--loads": "50,150", "--fixed-loads": "150", "--seconds": "1.5", "--churn": "5", "--soak": "0.15", "--swaps": "15",
    "--compared": "10",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a tiny run of it all, and its figures."""
    folder = tmp_path_factory.mktemp("serve")
    return folder, run_tiny("serve", OPTIONS, folder)


@pytest.mark.long
def test_puts_load_on_a_running_generator(run: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = run
    assert figures["nominal_rps"]["value"] > 0
    assert figures["answered_share_at_50"]["n"] > 0
    assert figures["adaptive_over_fixed_at_150"]["n"] > 0
    assert 0 < figures["list_value_at_50"]["n"] <= 10
    assert figures["list_value_at_50"]["value"] > 0
    assert figures["ads_paused"]["value"] > 0
    assert figures["invalid_ads"]["value"] == 0
    assert figures["invalid_ads"]["n"] > 0
    assert figures["failed"]["value"] == figures["soak_failed"]["value"] == figures["restarts"]["value"] == 0
    assert 1 <= figures["soak_swaps"]["value"] <= figures["soak_swaps"]["n"]
    assert figures["soak_rss_mb"]["value"] > 50  # torch alone is more
    assert "p99 of answers" in (folder / "report.html").read_text()


@pytest.mark.long
def test_an_interrupted_run_goes_on_where_it_was(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    finished, whole = run
    folder = tmp_path / "serve"
    shutil.copytree(finished, folder)
    kept = interrupted(folder, "load 150", "soak")
    figures = run_tiny("serve", OPTIONS, folder)
    assert figures.keys() == whole.keys()
    assert kept["capacity"]["figures"].items() <= figures.items()
    assert kept["load 50"]["figures"].items() <= figures.items()
    assert figures["answered_share_at_150"]["n"] > 0
    assert figures["soak_rss_mb"] != whole["soak_rss_mb"]
    assert figures["invalid_ads"]["n"] > sum(part["counts"]["returned"] for part in kept.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "huge"], "--preset: huge"),
        (["--widths", "1-2"], "--widths: 1-2"),
        (["--loads", "50", "--fixed-loads", "150"], "--fixed-loads"),
        (["--loads", "much"], "--loads"),
    ],
)
def test_refuses_options_that_make_no_run(options: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", *options, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert said in result.output
