"""The whole loop for real, small: four processes, PostgreSQL, real gRPC, from a data folder to the report."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gr4ad_core.learning.data_folder import read_interactions
from gr4ad_tools.demo.kills import KILLED
from gr4ad_tools.demo.record import Record
from gr4ad_tools.demo.run import DataError, DemoOptions, run_demo
from gr4ad_tools.leave_one_out import leave_one_out
from gr4ad_tools.otlp_receiver import Span
from gr4ad_tools.simulate import Market
from rich.console import Console

ARMS = ("stable", "canary")
pytestmark = pytest.mark.timeout(300)
# summary.json's figures, as readers of it know them.
FIGURES = {
    *("ads", "cpr", "col", "util"),
    *(
        f"{ranker}{m}@{k}"
        for ranker in ("", "popularity_", "transition_graph_")
        for m in ("recall", "ndcg")
        for k in (5, 10)
    ),
    *("insert_ms_p99", "pause_ms_p99", "dead_ads_returned"),
    *("qps", "p50_ms", "p99_ms", "failed_requests"),
    *("lists_served", "lists_logged", "lists_dropped", "demo_seconds"),
    *("events_accepted", "events_stored", "events_duplicate", "events_lost", "lists_unjoined"),
    *("policy_swaps", "swap_failed_requests", "stable_rpm", "canary_rpm", "canary_rpm_lift"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Record, Path, Path]:
    folder = tmp_path_factory.mktemp("demo")
    data, out = folder / "market", folder / "out"
    Market("tiny", 3).write_folder(data)
    document, record = small_demo(str(data), out)
    return document, record, data, out


def small_demo(data: str, out: Path) -> tuple[dict[str, Any], Record]:
    """Run the small demo in a process of its own."""
    result = out.with_suffix(".pickle")
    script = Path(__file__).with_name("small_demo.py")
    done = subprocess.run(
        [sys.executable, str(script), data, str(out), str(result)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document, record = pickle.loads(result.read_bytes())
    return document, record


def value(document: dict[str, Any], name: str) -> float:
    return float(document["figures"][name]["value"])


def test_the_summary_has_every_figure_and_is_what_was_returned(demo: tuple[dict[str, Any], Record, Path, Path]) -> None:
    document, _, _, out = demo
    assert set(document["figures"]) >= FIGURES
    assert json.loads((out / "summary.json").read_text()) == document
    assert (out / "report.html").stat().st_size > 10_000


def test_every_ad_has_a_sid_of_its_own(demo: tuple[dict[str, Any], Record, Path, Path]) -> None:
    document, _, data, _ = demo
    with gzip.open(data / "items.jsonl.gz", "rt") as lines:
        assert value(document, "ads") == sum(1 for _ in lines)
    assert value(document, "cpr") == 1.0
    assert value(document, "col") == 0.0


def test_no_request_fails_and_no_dead_ad_is_returned_while_policies_and_ads_change(
    demo: tuple[dict[str, Any], Record, Path, Path],
) -> None:
    document, record, _, _ = demo
    assert value(document, "failed_requests") == 0
    assert value(document, "dead_ads_returned") == 0
    assert value(document, "never_generated") == 0
    assert value(document, "policy_swaps") == len(record.swap_times) == 4
    assert value(document, "swap_failed_requests") == 0
    assert len({answer.policy_id for answer in record.traffic.answers}) == 2


def test_every_served_list_is_in_the_log(demo: tuple[dict[str, Any], Record, Path, Path]) -> None:
    document, _, _, _ = demo
    assert value(document, "lists_served") > 0
    assert value(document, "lists_logged") == value(document, "lists_served")
    assert value(document, "lists_dropped") == 0


def test_the_trainer_was_given_nothing_from_the_last_but_one_chosen_event_on(
    demo: tuple[dict[str, Any], Record, Path, Path],
) -> None:
    _, _, data, out = demo
    split = leave_one_out(read_interactions(data))
    given = read_interactions(out / "training")
    assert given.items.tolist() == split.train.items.tolist()
    assert len(given.items) < len(split.interactions.items)


def test_every_outcome_is_in_the_log_once(demo: tuple[dict[str, Any], Record, Path, Path]) -> None:
    document, record, _, _ = demo
    assert value(document, "events_accepted") > 2048
    assert value(document, "events_stored") == value(document, "events_accepted")
    assert value(document, "events_lost") == 0
    assert value(document, "online_failed") == 0
    assert {shown.channel for shown in record.online.traffic.shown} == {"stable", "canary"}


def test_the_canary_serves_what_was_learned_online(demo: tuple[dict[str, Any], Record, Path, Path]) -> None:
    document, record, _, _ = demo
    assert value(document, "online_published") == len(record.online.publications) >= 1
    assert value(document, "online_published") + value(document, "online_refused") >= 2
    assert value(document, "online_lists") == value(document, "stable_lists") + value(document, "canary_lists") == 2048
    assert all(policy.metrics["drift"] > 0.0 for policy in record.online.publications)
    first = record.online.traffic.shown[0].policy_id
    served = {channel: {s.policy_id for s in record.online.traffic.shown if s.channel == channel} for channel in ARMS}
    assert served["stable"] == {first}
    assert served["canary"] <= {first, *(policy.policy.policy_id for policy in record.online.publications)}


def test_one_trace_leads_from_an_outcome_to_the_swap(demo: tuple[dict[str, Any], Record, Path, Path]) -> None:
    _, record, _, _ = demo
    names = [span.name for span in record.learning_trace]
    for name in ("report outcomes", "learn from lists", "publish policy", "swap policy"):
        assert name in names, names
    assert edges(record.learning_trace) >= {
        ("caller", "reward_logger"),
        ("reward_logger", "rspo_trainer"),
        ("rspo_trainer", "ad_generator"),
    }


def test_one_trace_spans_caller_generator_and_reward_log(demo: tuple[dict[str, Any], Record, Path, Path]) -> None:
    _, record, _, _ = demo
    assert edges(record.request_trace) >= {("caller", "ad_generator"), ("ad_generator", "reward_logger")}


def test_one_trace_spans_ingest_catalogue_feed_and_generator(
    demo: tuple[dict[str, Any], Record, Path, Path],
) -> None:
    _, record, _, _ = demo
    assert edges(record.change_trace) >= {("caller", "sid_assigner"), ("sid_assigner", "ad_generator")}


@pytest.mark.long
def test_killed_in_turn_every_service_comes_back_and_no_outcome_is_lost_or_counted_twice(tmp_path: Path) -> None:
    document, record = small_demo("chaos", tmp_path / "out")
    assert all(record.online.restarts[name] == 1 for name in KILLED)
    assert value(document, "online_failed") == 0
    assert value(document, "online_retries") > 0
    assert value(document, "events_accepted") > 2048
    assert value(document, "events_stored") == value(document, "events_accepted")
    assert value(document, "events_lost") == 0
    assert value(document, "lists_unjoined") <= value(
        document, "online_retries"
    )  # lost on the way back, asked for again
    assert math.isnan(value(document, "lists_served"))  # counted by the processes that were killed
    assert value(document, "dead_ads_returned") == 0
    assert value(document, "swap_failed_requests") == 0
    # The trainer was killed, too, and read every list of the log once.
    assert value(document, "online_lists") == value(document, "stable_lists") + value(document, "canary_lists") > 2048
    # Revenue is judged on the market itself, which a data folder does not have.
    judged = [value(document, f"{policy}_rpm") for policy in ("random", "vsl", "rspo", "oracle")]
    assert judged[-1] == max(judged)
    assert (
        value(document, "rspo_lift_ci_low") <= value(document, "rspo_lift_pct") <= value(document, "rspo_lift_ci_high")
    )


def test_bad_data_is_refused_before_anything_starts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "items.jsonl").write_text('{"item_id": "a"}\n{"item_id": "a"}\n')
    (data / "interactions.csv").write_text("user_id,item_id,position,timestamp,event_type\nu,b,0,,click\n")
    options = DemoOptions(data, tmp_path / "out", seed=0, preset="", command="gr4ad demo")
    with pytest.raises(DataError, match=r"items\.jsonl:2: .*item_id"):
        asyncio.run(run_demo(options, Console(quiet=True)))
    assert not (tmp_path / "out" / "suite").exists()


def edges(spans: list[Span]) -> set[tuple[str, str]]:
    """Return the pairs of services that a parent and its child ran in, one trace all of it."""
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}
    return {
        (by_id[span.parent_id].service, span.service)
        for span in spans
        if span.parent_id in by_id and by_id[span.parent_id].service != span.service
    }
