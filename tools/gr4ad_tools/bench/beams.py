"""`gr4ad bench beams`: how widths follow the load, in a simulation of traffic around the generator's own queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from ad_generator.batch_plan import Limits
from ad_generator.cost_model import Costs
from numpy.typing import NDArray

from gr4ad_tools import figures
from gr4ad_tools.bench.beam_simulation import Course, Engine, Truth, poisson_arrivals, simulate
from gr4ad_tools.call_error import leave
from gr4ad_tools.figures import Figure
from gr4ad_tools.measure import show_summary, write_summary
from gr4ad_tools.report_page import plots, write_page

LOADS_PCT: Final = (10, 20, 30, 50, 70, 90, 100, 120, 150, 200, 300)
"""Of the arrivals that full batches at the base widths just keep up with."""
SETTLED: Final = 0.2
"""Share of a run after which its figures count: the costs have been learned by then."""
WINDOW_S: Final = 0.25
"""Of simulated time that a point of a drawing stands for."""
KINDS: Final = ("widths by load", "fixed widths")
SETTLING_PCT: Final = (30, 100, 150)
STORY: Final = (
    *((0, 0.3), (8, 0.3), (12, 1.0), (16, 1.0), (16, 3.0), (20, 3.0), (20, 0.5), (25, 0.5)),
    *((25, 1.5), (31, 1.5), (31, 3.0), (31.5, 3.0), (31.5, 0.2), (36, 0.2)),
)
"""Second and load, with straight lines between: a ramp, a long spike, an overload, a short spike."""
TILES: Final = {
    "in_budget_ratio_150pct": "answers in budget, dynamic over fixed, at 150 % load",
    "p99_ms_worst": "largest p99 of answers at any load, ms",
    "scale_10pct": "mean scale at 10 % load",
    "scale_150pct": "mean scale at 150 % load",
    "answered_share_300pct": "answered share at 300 % load",
    "cost_error": "mean relative error of predicted durations",
}


@dataclass(frozen=True)
class Setup:
    """What to simulate.

    Attributes:
        dynamic: The generator whose widths follow the load.
        budget_s: Latency budget of each request.
        seconds: Of each constant load.
        seed: Of every random choice.
    """

    dynamic: Engine
    budget_s: float
    seconds: float
    seed: int

    @property
    def fixed(self) -> Engine:
        """The same generator with the policy's own widths at any load."""
        return replace(self.dynamic, limits=replace(self.dynamic.limits, scale_min=1.0, scale_max=1.0))


def beams_command(
    widths: Annotated[str, typer.Option(help="The policy's own widths, one per level.")] = "32-64-128",
    scale_min: Annotated[float, typer.Option(min=0.05, max=1.0, help="Smallest factor on them.")] = 0.25,
    scale_max: Annotated[float, typer.Option(min=1.0, max=8.0, help="Largest factor on them.")] = 1.6,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests of one model call at most.")] = 9,
    budget_ms: Annotated[float, typer.Option(min=1.0, help="Latency budget of each request.")] = 100.0,
    call_ms: Annotated[float, typer.Option(min=0.0, help="Of each model call, whatever it holds.")] = 5.5,
    request_ms: Annotated[float, typer.Option(min=0.0, help="Of each request, whatever its widths.")] = 0.6,
    beam_us: Annotated[float, typer.Option(min=0.0, help="Of each beam of each request.")] = 7.8,
    seconds: Annotated[float, typer.Option(min=5.0, help="Simulated time of each constant load.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of summary.json and report.html.")] = Path("out/bench-beams"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Simulate the generator's queue at constant loads and through spikes, with widths by load and with fixed ones.

    The defaults of the costs are those of a policy of LazyArConfig's default size on one core.
    """
    try:
        base_widths = tuple(map(int, widths.split("-")))
    except ValueError:
        leave(f"--widths: {widths}: give one width per level, such as 32-64-128")
    if min(base_widths) < 1:
        leave(f"--widths: {widths}: give positive widths, such as 32-64-128")
    costs = Costs(1e-3 * call_ms, 1e-3 * request_ms, 1e-6 * beam_us)
    limits = Limits(max_batch_size, 1e-3, scale_min, scale_max)
    setup = Setup(Engine(Truth(costs), base_widths, limits), 1e-3 * budget_ms, seconds, seed)
    found, courses = measure(setup)
    document = write_summary(found, seed, out)
    write_page(
        out / "report.html",
        "gr4ad_tools.report_page",
        "page.html.j2",
        document,
        title="Dynamic beams",
        subtitle=f"Simulated: widths {widths} times {scale_min:g} to {scale_max:g}, batches of "
        f"{max_batch_size}, a budget of {budget_ms:g} ms, {setup.dynamic.nominal_rate:.0f} requests a second at 100 %.",
        tiles=TILES,
        sections=_sections(setup, found, courses),
    )
    show_summary(document, found, out, as_json)


def measure(setup: Setup, loads_pct: Sequence[int] = LOADS_PCT) -> tuple[dict[str, Figure], dict[int, Course]]:
    """Return the figures of constant loads, and the courses with widths by load."""
    found: dict[str, Figure] = {}
    courses: dict[int, Course] = {}
    begin, end = SETTLED * setup.seconds, setup.seconds - setup.budget_s
    for load in loads_pct:
        dynamic, fixed = constant_load(setup, load)
        courses[load] = dynamic
        for name, course in (("", dynamic), ("_fixed", fixed)):
            timely, asked = course.in_budget(setup.budget_s, begin, end), course.asked(begin, end)
            latencies_ms = (1e3 * course.latencies(begin)).tolist()
            found[f"in_budget_per_s{name}_{load}pct"] = Figure(timely / (end - begin), "1/s", asked)
            found[f"answered_share{name}_{load}pct"] = Figure(timely / max(1, asked), "", asked)
            found[f"p99_ms{name}_{load}pct"] = figures.percentile(latencies_ms, 99, "ms")
        timely, fixed_timely = (each.in_budget(setup.budget_s, begin, end) for each in (dynamic, fixed))
        ratio = timely / fixed_timely if fixed_timely else float("nan")
        found[f"in_budget_ratio_{load}pct"] = Figure(ratio, "times", timely + fixed_timely)
        found[f"scale_{load}pct"] = figures.mean(dynamic.scales(begin).tolist())
    found["p99_ms_worst"] = Figure(max(found[f"p99_ms_{load}pct"].value for load in loads_pct), "ms", len(loads_pct))
    errors = [abs(error) for course in courses.values() for error in course.cost_errors[len(course.cost_errors) // 5 :]]
    found["cost_error"] = figures.mean(errors)
    return found, courses


def constant_load(setup: Setup, load_pct: float) -> tuple[Course, Course]:
    """Simulate a load with widths by load and with fixed ones; both meet the same arrivals."""
    rate = load_pct / 100.0 * setup.dynamic.nominal_rate
    arrivals = poisson_arrivals(lambda _: rate, rate, setup.seconds, np.random.default_rng(setup.seed))
    return _both(setup, arrivals)


def story_load(second: float) -> float:
    """Return the load at a moment of the story, 1 being nominal."""
    moments, loads = zip(*STORY, strict=True)
    return float(np.interp(second, moments, loads))


def story(setup: Setup) -> tuple[Course, Course]:
    """Simulate the story with widths by load and with fixed ones; both meet the same arrivals."""
    nominal, (seconds, _) = setup.dynamic.nominal_rate, STORY[-1]
    arrivals = poisson_arrivals(
        lambda moment: nominal * story_load(moment),
        nominal * max(load for _, load in STORY),
        seconds,
        np.random.default_rng(setup.seed),
    )
    return _both(setup, arrivals)


def _both(setup: Setup, arrivals: Sequence[float]) -> tuple[Course, Course]:
    dynamic, fixed = (
        simulate(engine, arrivals, setup.budget_s, setup.seed + 1) for engine in (setup.dynamic, setup.fixed)
    )
    return dynamic, fixed


def _sections(setup: Setup, found: Mapping[str, Figure], courses: Mapping[int, Course]) -> list[dict[str, Any]]:
    return [
        {
            "title": "Through spikes",
            "text": "A ramp to the nominal load, three times as much for four seconds, overload by half and a short "
            "spike. All drawings show the same simulated seconds; fixed widths have the same deadlines and admission.",
            "drawings": _story_drawings(setup),
        },
        {
            "title": "At constant loads",
            "text": "Poisson arrivals at a constant rate. Both kinds of widths meet the same arrivals.",
            "drawings": _load_drawings(found),
        },
        {
            "title": "Settling",
            "text": "At a constant load the scale settles and follows only the chance of arrivals: it does not swing.",
            "drawings": [_settling_drawing(setup, courses)],
        },
    ]


def _story_drawings(setup: Setup) -> list[dict[str, str]]:
    courses = dict(zip(KINDS, story(setup), strict=True))
    edges = np.arange(0.0, STORY[-1][0] + WINDOW_S, WINDOW_S)
    loads = np.array([100.0 * story_load(moment) for moment in edges])
    starts, _, scales = np.array(courses[KINDS[0]].batches).T
    waits = {
        name: (np.array(course.batches)[:, 0], 1e3 * np.array(course.batches)[:, 1]) for name, course in courses.items()
    }
    shares = {name: (edges[:-1], _answered_shares(course, edges, setup.budget_s)) for name, course in courses.items()}
    return [
        _drawing(plots.lines({"load": (edges, loads)}, "seconds", "load, % of nominal"), "What is asked for."),
        _drawing(plots.lines({"scale": (starts, scales)}, "seconds", "scale of widths"), "Scale of each batch."),
        _drawing(
            plots.lines(waits, "seconds", "wait, ms", limit=1e3 * setup.budget_s),
            "How long the oldest request of each batch waited; dotted, the latency budget.",
        ),
        _drawing(
            plots.lines(shares, "seconds", "answered in budget"),
            f"Share of the requests of each {WINDOW_S:g} s that were answered within their budget.",
        ),
    ]


def _load_drawings(found: Mapping[str, Figure]) -> list[dict[str, str]]:
    loads = np.array(LOADS_PCT, np.float64)

    def series(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return loads, np.array([found[f"{name}_{load}pct"].value for load in LOADS_PCT])

    def both(name: str) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return {KINDS[0]: series(name), KINDS[1]: series(f"{name}_fixed")}

    axis = "load, % of nominal"
    return [
        _drawing(
            plots.lines(both("in_budget_per_s"), axis, "answers a second"), "Answers within the budget, a second."
        ),
        _drawing(plots.lines(both("p99_ms"), axis, "p99, ms"), "99th percentile of the answers' latency."),
        _drawing(plots.lines({"scale": series("scale")}, axis, "mean scale"), "Mean scale of the widths."),
    ]


def _settling_drawing(setup: Setup, courses: Mapping[int, Course]) -> dict[str, str]:
    edges = np.arange(0.0, setup.seconds + WINDOW_S, WINDOW_S)
    means = {}
    for load in SETTLING_PCT:
        starts, _, scales = np.array(courses[load].batches).T
        counts, sums = np.histogram(starts, edges)[0], np.histogram(starts, edges, weights=scales)[0]
        means[f"{load} %"] = (edges[:-1][counts > 0], sums[counts > 0] / counts[counts > 0])
    return _drawing(
        plots.lines(means, "seconds", "mean scale"), f"Mean scale of each {WINDOW_S:g} s at constant loads."
    )


def _drawing(svg: str, caption: str) -> dict[str, str]:
    return {"svg": svg, "caption": caption}


def _answered_shares(course: Course, edges: NDArray[np.float64], budget_s: float) -> NDArray[np.float64]:
    timely = [arrival for arrival, latency in course.answers if latency <= budget_s]
    asked = np.histogram(course.arrivals, edges)[0]
    shares: NDArray[np.float64] = np.histogram(timely, edges)[0] / np.maximum(1, asked)
    return shares
