"""The report's drawings, each an SVG text made from measured values."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK = "#24292f"
MUTED = "#8a929b"
POLICY = "#2b6cb0"
SECOND = "#c05621"
THIRD = "#2f855a"
FOURTH = "#6b46c1"
MARKED = 20  # points of a line at most, to be marked one by one
STYLE: dict[Any, Any] = {  # its declared keys are a literal of all parameters
    "svg.fonttype": "none",
    "svg.hashsalt": "gr4ad",  # the same values give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> str:
    """Draw the training loss."""
    figure, axes = _axes(5.6, 2.6)
    axes.plot(steps, losses, color=POLICY, linewidth=1.6)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("VSL loss")
    return _svg(figure)


def ranking_bars(values: Mapping[str, Mapping[str, float]]) -> str:
    """Draw groups of bars: values[metric][ranker]."""
    figure, axes = _axes(5.6, 2.6)
    rankers = list(next(iter(values.values())))
    colours = (POLICY, SECOND, THIRD)
    width = 0.8 / len(rankers)
    places = np.arange(len(values))
    for number, ranker in enumerate(rankers):
        heights = [metric[ranker] for metric in values.values()]
        bars = axes.bar(places + number * width, heights, width * 0.92, color=colours[number], label=ranker)
        axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=1)
    axes.set_xticks(places + width * (len(rankers) - 1) / 2, list(values))
    axes.margins(y=0.18)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def latency_over_time(
    seconds: NDArray[np.float64], latencies_ms: NDArray[np.float64], swaps: Sequence[float], limit_ms: float
) -> str:
    """Draw each answer's latency at the time it came, with the moments of policy swaps."""
    figure, axes = _axes(5.6, 2.6)
    axes.scatter(seconds, latencies_ms, s=2, color=POLICY, alpha=0.35, linewidths=0, rasterized=True)
    for number, swap in enumerate(swaps):
        axes.axvline(swap, color=SECOND, linewidth=1, label="policy swap" if number == 0 else None)
    axes.axhline(limit_ms, color=MUTED, linewidth=1, linestyle=":", label=f"{limit_ms:.0f} ms")
    axes.set_ylim(0, max(1.1 * limit_ms, 1.05 * float(latencies_ms.max(initial=0.0))))
    axes.set_xlabel("seconds into the run")
    axes.set_ylabel("latency, ms")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return _svg(figure)


def latency_distribution(latencies_ms: NDArray[np.float64]) -> str:
    """Draw the share of answers within a latency."""
    figure, axes = _axes(5.6, 2.6)
    ordered = np.sort(latencies_ms)
    axes.plot(ordered, np.arange(1, len(ordered) + 1) / max(1, len(ordered)), color=POLICY, linewidth=1.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("share of answers")
    for q in (50, 90, 99):
        if len(ordered):
            value = float(np.percentile(ordered, q))
            axes.plot([value], [q / 100], "o", color=SECOND, markersize=4)
            axes.annotate(f"p{q} {value:.0f} ms", (value, q / 100), xytext=(6, -9), textcoords="offset points")
    return _svg(figure)


def width_bars(counts: Mapping[tuple[int, ...], int]) -> str:
    """Draw how many answers used which beam widths."""
    figure, axes = _axes(5.6, 0.8 + 0.32 * len(counts))
    ordered = sorted(counts.items(), key=lambda item: item[1])
    bars = axes.barh(["-".join(map(str, widths)) for widths, _ in ordered], [n for _, n in ordered], color=POLICY)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.set_xlabel("answers")
    return _svg(figure)


def bars(values: Mapping[str, float], number: str, label: str = "") -> str:
    """Draw one bar per name, its number at its end in the given format."""
    figure, axes = _axes(5.6, 0.8 + 0.36 * len(values))
    drawn = axes.barh(list(values), list(values.values()), color=POLICY)
    axes.bar_label(drawn, fmt=number.format, padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    return _svg(figure)


def code_map(
    points_V2: NDArray[np.float64], ads_V: NDArray[np.int64], kind_V: NDArray[np.int64], kinds: Sequence[str]
) -> str:
    """Draw codes as points in a plane: area by their number of ads, colour by kind."""
    figure, axes = _axes(5.6, 4.2)
    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]  # of a list of colours
    for kind, name in enumerate(kinds):
        of = kind_V == kind
        if of.any():
            sizes = 160.0 * ads_V[of] / max(1, ads_V.max())
            x, y = points_V2[of].T
            axes.scatter(x, y, s=sizes, color=colours[kind % 10], alpha=0.6, linewidths=0, label=name)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def revenue_over_time(
    seconds: NDArray[np.float64],
    bands: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]],
) -> str:
    """Draw each arm's revenue per mille over time: value, lower and upper end of its band at each moment."""
    figure, axes = _axes(5.6, 2.6)
    for (arm, (value, low, high)), colour in zip(bands.items(), (POLICY, SECOND), strict=True):
        axes.plot(seconds, value, color=colour, linewidth=1.6, label=arm)
        axes.fill_between(seconds, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds into the phase")
    axes.set_ylabel("revenue per 1,000 impressions")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def publications(lists: Sequence[float], measured: Mapping[str, Sequence[float]]) -> str:
    """Draw what the gate measured at each publication, against the lists learned from."""
    figure, axes = _axes(5.6, 2.6)
    for (name, values), colour in zip(measured.items(), (POLICY, SECOND, FOURTH, THIRD), strict=True):
        axes.plot(lists, values, color=colour, linewidth=1.2, marker="o", markersize=4, label=name)
    axes.axhline(1.0, color=MUTED, linewidth=1, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("lists read when published")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def code_balance(sids_NT: NDArray[np.int64], level_sizes: Sequence[int]) -> str:
    """Draw, for each level, how many ads each code holds, the fullest first, relative to an even spread."""
    figure, axes = _axes(5.6, 2.6)
    for level, (size, colour) in enumerate(zip(level_sizes, (POLICY, SECOND, THIRD), strict=False)):
        held = np.sort(np.bincount(sids_NT[:, level], minlength=size))[::-1]
        axes.plot(np.arange(size) / size, held * size / len(sids_NT), color=colour, label=f"level {level + 1}: {size}")
    axes.axhline(1.0, color=MUTED, linewidth=1, linestyle=":")
    axes.set_xlabel("codes, the fullest first (share of the level)")
    axes.set_ylabel("ads, relative to even")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def delay_dots(delays_ms: Mapping[str, Sequence[float]], limit_ms: float) -> str:
    """Draw each probe's delay, one row per kind of change."""
    figure, axes = _axes(5.6, 1.7)
    for row, (colour, values) in enumerate(zip((POLICY, SECOND), delays_ms.values(), strict=False)):
        axes.scatter(values, np.full(len(values), row), s=22, color=colour, alpha=0.6, linewidths=0)
    axes.axvline(limit_ms, color=MUTED, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(delays_ms)), list(delays_ms))
    axes.set_ylim(-0.6, len(delays_ms) - 0.4)
    axes.set_xlim(0, limit_ms * 1.05)
    axes.set_xlabel("ms from the commit's acknowledgement")
    return _svg(figure)


def lines(
    series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    x_label: str,
    y_label: str,
    limit: float | None = None,
) -> str:
    """Draw named series of points, x and y, joined by lines; few points are marked. With a dotted limit, if given."""
    figure, axes = _axes(5.6, 2.4)
    for (name, (x, y)), colour in zip(series.items(), (POLICY, SECOND, THIRD), strict=False):
        axes.plot(x, y, color=colour, linewidth=1.2, marker="o" if len(x) <= MARKED else "", markersize=3, label=name)
    if limit is not None:
        axes.axhline(limit, color=MUTED, linewidth=1, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None}, dpi=150)
    return text.getvalue().split("?>", 1)[-1].split('.dtd">', 1)[-1]
