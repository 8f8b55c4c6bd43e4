"""The report holds what was measured, needs nothing from elsewhere, and is safe against what titles hold."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from gr4ad.training.v1 import training_pb2
from gr4ad_tools.demo.online import OnlinePhase
from gr4ad_tools.demo.record import GeneratedFor, Record
from gr4ad_tools.demo.report import revenue_bands, write_report
from gr4ad_tools.figures import Figure, document
from gr4ad_tools.live_index import LiveIndexDelays
from gr4ad_tools.online_traffic import OnlineTraffic, Shown
from gr4ad_tools.otlp_receiver import Span
from gr4ad_tools.report_page import format_value
from gr4ad_tools.traffic import Answer, Traffic

NAMES = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


@pytest.fixture
def record() -> Record:
    figures = {
        prefix + name: Figure(0.0625, "", 40) for prefix in ("", "popularity_", "transition_graph_") for name in NAMES
    }
    figures |= {
        "cpr": Figure(1.0),
        "col": Figure(0.0),
        "util": Figure(0.001),
        "p99_ms": Figure(61.4, "ms", 9, 3.0, 70.0),
        **{
            f"{channel}_rpm{end}": Figure(4.0 + place)
            for channel in ("stable", "canary")
            for place, end in enumerate(("", "_ci_low", "_ci_high"))
        },
    }
    spans = [
        Span("t", "1", "", "ask for ads", "caller", 0, 30_000_000),
        Span("t", "2", "1", "GenerateAds", "ad_generator", 2_000_000, 20_000_000),
        Span("t", "3", "2", "store served lists", "reward_logger", 25_000_000, 30_000_000),
    ]
    return Record(
        source="Simulated market",
        codebook_id="demo",
        level_sizes=(4, 4, 4),
        sids_NT=np.array([[0, 1, 2], [3, 1, 0]]),
        loss_steps=[1, 2],
        losses=[3.0, 2.0],
        traffic=Traffic([Answer("r", 0, 1.0, 1.05, ("a",), (-1.0,), (32, 64, 128), "p")], seconds=2.0),
        swap_times=[0.02],
        delays=LiveIndexDelays(insert_ms=[40.0], pause_ms=[50.0]),
        request_trace=spans,
        users=[
            GeneratedFor(
                "u1",
                [("<script>alert(1)</script>", "clicked")],
                9,
                ("a", "lamp"),
                [("a", "lamp", (0, 1, 2), -1.5, 2_500_000)],
            )
        ],
        online=OnlinePhase(
            traffic=OnlineTraffic(
                start=100.0,
                seconds=8.0,
                shown=[
                    Shown(channel, f"user-{n}", 100.0 + n, 9.0, "p", 10, 1, 1_000_000 * n)
                    for channel in ("stable", "canary")
                    for n in range(9)
                ],
            ),
            publications=[
                training_pb2.Policy(metrics={"lists": 64.0, "drift": 0.1}),
                training_pb2.Policy(
                    metrics={
                        "lists": 128.0,
                        "drift": 0.2,
                        "calibration": 1.1,
                        "ecpm_calibration": 0.9,
                        "start_ecpm_calibration": 1.0,
                        "held_out_recall@10": 0.4,
                        "start_held_out_recall@10": 0.5,
                    }
                ),
            ],
        ),
        figures=figures,
    )


def test_the_report_is_whole_and_stands_alone(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, record, document(record.figures, "gr4ad demo", 3))
    text = path.read_text()
    parser = HTMLParser()
    parser.feed(text)
    # Besides the names of XML namespaces nothing points elsewhere, and no script runs.
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+""", text)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("<svg") == 9
    assert "stable 4.0 (5.0 to 6.0) · canary 4.0 (5.0 to 6.0)" in text
    assert "was published 2 times" in text
    assert "no bids" not in text
    for name in record.figures:
        assert f"<td>{name}</td>" in text
    assert "0-1-2 · log p -1.50 · eCPM 2.50" in text
    assert 'class="hit"' in text
    assert '<ol start="9">' in text


def test_revenue_is_drawn_where_a_market_judged_it(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, record, document(record.figures, "gr4ad demo", 3))
    assert "<h2>Revenue</h2>" not in path.read_text()
    names = ("random_rpm", "popularity_bid_rpm", "vsl_rpm", "rspo_rpm", "oracle_rpm")
    record.figures |= {name: Figure(float(place), "", 1000) for place, name in enumerate(names)}
    ends = ("pct", "ci_low", "ci_high")
    record.figures |= {f"rspo_{of}lift_{end}": Figure(5.0) for of in ("", "strangers_") for end in ends}
    record.bids_made_up = True
    write_report(path, record, document(record.figures, "gr4ad demo", 3))
    text = path.read_text()
    assert "<h2>Revenue</h2>" in text
    assert "1,000 fixed requests" in text
    assert text.count("<svg") == 10
    assert "RSPO over VSL: +5.0 % (+5.0 to +5.0); on users who were not met while it learned: +5.0 %" in text
    assert "The folder has no bids" in text


def test_revenue_over_time_is_that_of_each_part_and_arm(record: Record) -> None:
    moments, bands = revenue_bands(record.online.traffic, parts=4)
    assert moments.tolist() == [1.0, 3.0, 5.0, 7.0]
    value, low, high = bands["stable"]
    # Answers at seconds 0 to 2, 3 and 4, 5 and 6, 7 and 8; second n earned n units with 10 impressions.
    np.testing.assert_allclose(value, [100.0, 350.0, 550.0, 750.0])
    assert (low <= value).all()
    assert (high >= value).all()


def test_the_waterfall_puts_children_under_their_parents_in_time(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, record, document(record.figures, "gr4ad demo", 3))
    text = path.read_text()
    places = [text.index(name) for name in ("ask for ads", "> GenerateAds", "> store served lists")]
    assert places == sorted(places)
    assert "left: 6.667%; width: 60.0%" in text
    assert "18.00 ms" in text
    assert "No such trace was received" in text  # the change trace of this record is empty


@pytest.mark.parametrize(
    ("value", "text"),
    [(12101.0, "12,101"), (0.0612, "0.0612"), (61.44, "61.4"), (float("nan"), "not measured"), (0.0, "0")],
)
def test_values_read_as_a_person_writes_them(value: float, text: str) -> None:
    assert format_value(Figure(value)) == text
