"""The demo's report: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr4ad_tools.bootstrap import UserSums, bootstrap_ratio
from gr4ad_tools.demo.record import GeneratedFor, Record
from gr4ad_tools.figures import Figure
from gr4ad_tools.live_index import PAUSE_LIMIT_S
from gr4ad_tools.online_traffic import OnlineTraffic
from gr4ad_tools.otlp_receiver import Span
from gr4ad_tools.report_page import plots, write_page
from gr4ad_tools.split import CANARY, STABLE

LATENCY_LIMIT_MS = 100.0
MICROS = 1e6
TIME_PARTS = 8
SERVICE_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280")
TILES = {
    "ads": "ads with a SID",
    "col": "colliding ads",
    "recall@10": "recall@10, held-out users",
    "popularity_recall@10": "recall@10 of popularity",
    "transition_graph_recall@10": "recall@10 of the transition graph",
    "vsl_rpm": "revenue per 1,000 impressions, VSL",
    "rspo_rpm": "the same after learning online by RSPO",
    "rspo_lift_pct": "lift of RSPO over VSL, %",
    "dpo_rpm": "the same after learning online by DPO",
    "dpo_lift_pct": "lift of DPO over VSL, %",
    "oracle_rpm": "revenue of the best lists there are",
    "qps": "requests answered per second",
    "p50_ms": "median latency, ms",
    "p99_ms": "p99 latency, ms",
    "failed_requests": "failed requests",
    "insert_ms_p99": "new ad live, p99 ms",
    "pause_ms_p99": "paused ad gone, p99 ms",
    "dead_ads_returned": "dead ads returned",
    "lists_logged": "served lists logged",
    "lists_dropped": "served lists dropped",
    "policy_swaps": "policies swapped while serving",
    "events_accepted": "outcomes acknowledged",
    "events_lost": "outcomes lost or counted twice",
}


def write_report(path: Path, record: Record, document: dict[str, Any]) -> None:
    """Render the report beside the summary.

    Args:
        path: File to write; a reader sees the old one or the new one.
        record: What the run saw.
        document: The summary, as written to summary.json.
    """
    write_page(
        path,
        "gr4ad_tools.demo",
        "report.html.j2",
        document,
        title="Ads, written by one model",
        subtitle=f"{record.source} · codebook {record.codebook_id} {_sizes(record.level_sizes)} · "
        f"version {document['version']} · seed {document['seed']}",
        tiles=TILES,
        sections=_sections(record),
        traces=[
            {"title": "A request: caller → generator → reward log", "spans": _waterfall(record.request_trace)},
            {
                "title": "An outcome: tracker → reward log → learning → publication → swap",
                "spans": _waterfall(record.learning_trace),
            },
            {"title": "A new ad: ingest → catalogue feed → live index", "spans": _waterfall(record.change_trace)},
        ],
        users=[_user(user) for user in record.users],
    )


def _revenue(figures: Mapping[str, Figure]) -> list[dict[str, Any]]:
    """Return the section on revenue; none where no market could judge it."""
    names = {
        "random_rpm": "by lot",
        "popularity_bid_rpm": "popularity × bid",
        "vsl_rpm": "gr4ad, VSL",
        "rspo_rpm": "gr4ad, VSL + RSPO",
        "dpo_rpm": "gr4ad, VSL + DPO",
        "oracle_rpm": "oracle",
    }
    rpm = {label: figures[name].value for name, label in names.items() if name in figures}
    if not rpm:
        return []
    learned_by = "rspo" if "rspo_rpm" in figures else "dpo"
    return [
        {
            "title": "Revenue",
            "text": f"The lists for {figures['vsl_rpm'].n:,} fixed requests, at the market's own expected value: no "
            "click is drawn. The oracle shows the best lists there are, knowing the truth.",
            "drawings": [
                {
                    "svg": plots.bars(rpm, "{:.1f}", "revenue per 1,000 impressions"),
                    "caption": f"Expected revenue of each policy's lists. {learned_by.upper()} over VSL: "
                    f"{_lift(figures, f'{learned_by}_lift')}; on users who were not met while it learned: "
                    f"{_lift(figures, f'{learned_by}_strangers_lift')}.",
                }
            ],
        }
    ]


def _lift(figures: Mapping[str, Figure], name: str) -> str:
    value, low, high = (figures[f"{name}_{end}"].value for end in ("pct", "ci_low", "ci_high"))
    return f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"


def _online(record: Record) -> list[dict[str, Any]]:
    """Return the section on online learning."""
    phase, figures = record.online, record.figures
    moments, bands = revenue_bands(phase.traffic)
    lists = [policy.metrics["lists"] for policy in phase.publications]
    measured = {
        "drift, nats": "drift",
        "calibration: expected eCPM over earned": "calibration",
        "eCPM token: expected over the start's": "ecpm",
        "recall@10 over the start's": "recall",
    }
    by_name = [_gate_values(policy.metrics) for policy in phase.publications]
    earned = " · ".join(
        f"{channel} {figures[f'{channel}_rpm'].value:,.1f} "
        f"({figures[f'{channel}_rpm_ci_low'].value:,.1f} to {figures[f'{channel}_rpm_ci_high'].value:,.1f})"
        for channel in (STABLE, CANARY)
    )
    bids = " The folder has no bids: each ad was given one, drawn by the seed." if record.bids_made_up else ""
    return [
        {
            "title": "Learning online",
            "text": "Two arms behind a sticky split of the users. Both began with the same policy; the canary's "
            f"goes on learning from the outcomes of both, by preferences and VSL together, and was published "
            f"{len(phase.publications)} times. Logged revenue per mille, as users reacted: {earned}.{bids}",
            "drawings": [
                {
                    "svg": plots.revenue_over_time(moments, bands),
                    "caption": "Logged revenue per mille by arm, with 95 % bands clustered by user.",
                },
                {
                    "svg": plots.publications(
                        lists, {label: [values[name] for values in by_name] for label, name in measured.items()}
                    ),
                    "caption": "What the gate measured on held-out users at each publication; what needs more "
                    "responses than there were is left out.",
                },
            ],
        }
    ]


def _gate_values(metrics: Mapping[str, float]) -> dict[str, float]:
    def over_the_starts(name: str) -> float:
        start = metrics.get(f"start_{name}", 0.0)
        return metrics[name] / start if start else math.nan

    return {
        "drift": metrics["drift"],
        "calibration": metrics.get("calibration", math.nan),
        "ecpm": over_the_starts("ecpm_calibration"),
        "recall": over_the_starts("held_out_recall@10"),
    }


def revenue_bands(
    traffic: OnlineTraffic, parts: int = TIME_PARTS
) -> tuple[NDArray[np.float64], dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]]:
    """Return the middles of equal parts of a phase, and each arm's revenue per mille in them: value, low and high.

    Args:
        traffic: What the phase saw.
        parts: How many.
    """
    edges = np.linspace(0.0, max(traffic.seconds, 1e-9), parts + 1)
    bands = {}
    for channel in (STABLE, CANARY):
        shown = [one for one in traffic.shown if one.channel == channel]
        part_N = np.searchsorted(edges, [one.at - traffic.start for one in shown]).clip(1, parts) - 1
        users_N = np.array([one.user_id for one in shown])
        earned_N = np.array([one.charge_micros / MICROS for one in shown])
        thousands_N = np.array([one.impressions / 1000.0 for one in shown])
        found = np.full((3, parts), math.nan)
        for part in range(parts):
            of = part_N == part
            if of.any():
                interval = bootstrap_ratio(UserSums.of(users_N[of], earned_N[of], thousands_N[of]), seed=part)
                found[:, part] = interval.value, interval.low, interval.high
        bands[channel] = (found[0], found[1], found[2])
    return (edges[:-1] + edges[1:]) / 2, bands


def _sections(record: Record) -> list[dict[str, Any]]:
    figures = record.figures
    rankers = {"gr4ad": "", "popularity": "popularity_", "transition graph": "transition_graph_"}
    bars = {
        metric: {label: figures[prefix + metric].value for label, prefix in rankers.items()}
        for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
    }
    answers = record.traffic.answers
    latencies = np.array([answer.latency_ms for answer in answers])
    moments = np.array([answer.received - record.traffic_start for answer in answers])
    return [
        {
            "title": "Learning",
            "text": "Value-aware supervised learning on the training part; the last chosen ad of each user was kept "
            "from the trainer, from the log and from every history until it was scored.",
            "drawings": [
                {"svg": plots.loss_curve(record.loss_steps, record.losses), "caption": "Training loss."},
                {
                    "svg": plots.ranking_bars(bars),
                    "caption": f"Held-out users, n = {figures['recall@10'].n}: the served policy over gRPC beside "
                    "popularity and the item transition graph of the same training part.",
                },
            ],
        },
        {
            "title": "Serving",
            "text": f"{len(answers):,} requests by concurrent closed-loop users while policies were swapped; then ads "
            "were added and paused beside them.",
            "drawings": [
                {
                    "svg": plots.latency_over_time(moments, latencies, record.swap_times, LATENCY_LIMIT_MS),
                    "caption": "Latency of every answer, as the caller saw it.",
                },
                {"svg": plots.latency_distribution(latencies), "caption": "Share of answers within a latency."},
                {
                    "svg": plots.width_bars(Counter(answer.widths for answer in answers)),
                    "caption": "Beam widths used, per level.",
                },
                {
                    "svg": plots.delay_dots(
                        {"new ad → generated": record.delays.insert_ms, "paused → gone": record.delays.pause_ms},
                        1000.0 * PAUSE_LIMIT_S,
                    ),
                    "caption": "Delay of each change of the catalogue, measured on what the generator returned.",
                },
            ],
        },
        *_online(record),
        *_revenue(figures),
        {
            "title": "Semantic IDs",
            "text": f"Compression {figures['cpr'].value:.3f} ads per SID, {figures['col'].value:.2%} of the ads "
            f"collide, {figures['util'].value:.3g} of all SIDs are used.",
            "drawings": [
                {
                    "svg": plots.code_balance(record.sids_NT, record.level_sizes),
                    "caption": "Balance of each level's codes; 1 is an even spread.",
                }
            ],
        },
    ]


def _waterfall(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Lay a trace's spans out parent before child, in percent of the trace's time."""
    if not spans:
        return []
    start = min(span.start_ns for span in spans)
    total = max(1, max(span.end_ns for span in spans) - start)
    known = {span.span_id for span in spans}
    services = list(dict.fromkeys(span.service for span in sorted(spans, key=lambda span: span.start_ns)))
    rows: list[dict[str, Any]] = []

    def lay(parent: str, depth: int) -> None:
        children = [span for span in spans if (span.parent_id if span.parent_id in known else "") == parent]
        for span in sorted(children, key=lambda child: child.start_ns):
            rows.append(
                {
                    "name": span.name,
                    "service": span.service,
                    "depth": depth,
                    "left": round(100 * (span.start_ns - start) / total, 3),
                    "width": round(100 * (span.end_ns - span.start_ns) / total, 3),
                    "duration": _duration(span.end_ns - span.start_ns),
                    "colour": SERVICE_COLOURS[services.index(span.service) % len(SERVICE_COLOURS)],
                }
            )
            lay(span.span_id, depth + 1)

    lay("", 0)
    return rows


def _duration(ns: int) -> str:
    return f"{ns / 1e6:.2f} ms" if ns < 1e9 else f"{ns / 1e9:.2f} s"


def _user(user: GeneratedFor) -> dict[str, Any]:
    return {
        "user_id": user.user_id,
        "target": user.target[1],
        "first_number": user.history_length - len(user.history) + 1,
        "history": [{"title": title, "behavior": behavior} for title, behavior in user.history],
        "generated": [
            {
                "title": title,
                "sid": "-".join(map(str, sid)),
                "log_prob": f"{log_prob:.2f}",
                "ecpm": f"{ecpm / 1e6:,.2f}",
                "hit": ad_id == user.target[0],
            }
            for ad_id, title, sid, log_prob, ecpm in user.generated
        ],
    }


def _sizes(level_sizes: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, level_sizes)) + ")"
