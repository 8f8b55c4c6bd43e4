"""The command `gr4ad bench serve`, and its page."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from gr4ad_tools.bench.serve.churn import Churn
from gr4ad_tools.bench.serve.on_services import Tell, measured_on, shape_of
from gr4ad_tools.bench.serve.session import GENERATORS, Plan, Session
from gr4ad_tools.bench.serve.stage import SHAPES, Stage
from gr4ad_tools.call_error import leave
from gr4ad_tools.codebook import parse_sizes
from gr4ad_tools.demo.state import RunState
from gr4ad_tools.figures import Figure
from gr4ad_tools.measure import show_summary, write_summary
from gr4ad_tools.report_page import plots, write_page

TILES: Final = {
    "nominal_rps": "requests a second that fixed widths answer, the nominal load",
    "p99_ms_at_100": "p99 of answers at 100 % load, ms",
    "p99_ms_at_300": "p99 of answers at 300 % load, ms",
    "adaptive_over_fixed_at_150": "answers in budget at 150 % load, adaptive over fixed",
    "refused_ms_p99": "p99 of refusals in the server, ms",
    "invalid_ads": "returned ads that were not live",
    "soak_rss_growth_pct": "growth of memory under a long load, %",
}
DRAWN: Final = {
    "p99_ms": ("p99 of answers, ms", "From the moment a request was due to its answer, in budget or not."),
    "answered_share": ("answered in budget", "Share of all requests that were answered within their budget."),
    "scale": ("scale of widths", "Mean factor on the policy's own widths, over answers."),
    "list_value": (
        "value of the lists",
        "Σ probability · expected eCPM of a list's ads, relative to the same user's list at full width.",
    ),
}
KINDS: Final = {"at": "widths by load", "fixed_at": "fixed widths"}


def serve_command(
    preset: Annotated[str, typer.Option(help=f"Shape of the policy: {', '.join(SHAPES)}.")] = "demo",
    ads: Annotated[int, typer.Option(min=100, help="Live ads.")] = 20_000,
    level_sizes: Annotated[str, typer.Option(help="Codes of every level; by the number of ads if left out.")] = "",
    widths: Annotated[str, typer.Option(help="The policy's own widths, one per level.")] = "128-256-512",
    candidates: Annotated[int, typer.Option(min=1, max=512, help="Ads wanted per request.")] = 20,
    budget_ms: Annotated[float, typer.Option(min=1.0, help="Latency budget of each request.")] = 100.0,
    loads: Annotated[str, typer.Option(help="In percent of the nominal load.")] = "10,50,100,150,200,300",
    fixed_loads: Annotated[str, typer.Option(help="Those of them to put on fixed widths, too.")] = "150",
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each load.")] = 10.0,
    capacity_seconds: Annotated[float, typer.Option(min=0.5, help="Of each step in the search of the capacity.")] = 4.0,
    churn: Annotated[float, typer.Option(min=0.0, help="Ads to pause, and to create, a second under load.")] = 0.0,
    soak: Annotated[float, typer.Option(min=0.0, help="Minutes of a load of 80 % after the others.")] = 0.0,
    swaps: Annotated[float, typer.Option(min=0.0, help="Policies made current a minute in that load.")] = 2.0,
    compared: Annotated[int, typer.Option(min=0, help="Lists of each load to compare with full width.")] = 100,
    device: Annotated[str, typer.Option(help="Torch device of the policies.")] = "cpu",
    compute_type: Annotated[str, typer.Option(help="What their layers compute in.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of a model call.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on there.")] = Path(
        "out/bench-serve"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Put open-loop load on a running generator, with widths by load and with fixed ones, and check what it returns.

    The nominal load is what users who wait for answers get from fixed widths. Everything shares this machine: the
    generators, their neighbours, the database and the client.
    """
    shape = shape_of(preset, ads, level_sizes, widths, device, compute_type, threads, seed)
    try:
        plan = Plan(
            loads=parse_sizes(loads) or (),
            fixed_loads=parse_sizes(fixed_loads) or (),
            seconds=seconds,
            capacity_seconds=capacity_seconds,
            soak_minutes=soak,
            swaps_per_minute=swaps,
            budget_s=1e-3 * budget_ms,
            candidates=candidates,
            churn_per_s=churn,
            compared=compared,
            seed=seed,
        )
    except ValueError:
        leave(f"--loads, --fixed-loads: {loads}, {fixed_loads}: give such as 50,150")
    if min(plan.loads, default=0) < 1 or not set(plan.fixed_loads) <= set(plan.loads):
        leave(f"--loads, --fixed-loads: {loads}, {fixed_loads}: give positive loads, the fixed ones among them")

    async def measure(stage: Stage, client: ProcessPoolExecutor, state: RunState, tell: Tell) -> dict[str, Figure]:
        churn = Churn(stage.sids, stage.ad_ids, stage.spare, plan.churn_per_s, plan.seed)
        return await Session(stage, plan, client, churn, tell, state).measure()

    found = measured_on(shape, GENERATORS, plan, out, measure)
    document = write_summary(found, seed, out)
    write_page(
        out / "report.html",
        "gr4ad_tools.report_page",
        "page.html.j2",
        document,
        title="A generator under load",
        subtitle=f"A policy of the shape {preset}, {ads:,} ads, widths {widths}, a budget of {budget_ms:g} ms, "
        f"{candidates} ads wanted; {found['nominal_rps'].value:.0f} requests a second at 100 %.",
        tiles=TILES,
        sections=sections(found, plan),
    )
    show_summary(document, found, out, as_json)


def sections(found: Mapping[str, Figure], plan: Plan) -> list[dict[str, Any]]:
    """Return the page's drawings: each measure against the load."""
    drawings = []
    for name, (label, caption) in DRAWN.items():
        series = {}
        for at, kind in KINDS.items():
            loads = [load for load in plan.loads if f"{name}_{at}_{load}" in found]
            if loads:
                values = [found[f"{name}_{at}_{load}"].value for load in loads]
                series[kind] = (np.array(loads, dtype=np.float64), np.array(values))
        drawings.append({"svg": plots.lines(series, "load, % of nominal", label), "caption": caption})
    text = (
        "Poisson arrivals, each of another user, sent when due whatever becomes of those before. The first fifth of "
        "each load does not count. Both kinds of widths meet the same arrivals, deadlines and admission."
    )
    return [{"title": "Against the load", "text": text, "drawings": drawings}]
