"""The command `gr4ad bench cache`."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from gr4ad_core.learning.data_folder import read_interactions

from gr4ad_tools.bench.cache.session import Plan, Session
from gr4ad_tools.bench.cache.visits import Visitors
from gr4ad_tools.bench.serve.churn import Churn
from gr4ad_tools.bench.serve.on_services import Tell, measured_on, shape_of
from gr4ad_tools.bench.serve.stage import SHAPES, Stage
from gr4ad_tools.demo.state import RunState
from gr4ad_tools.figures import Figure
from gr4ad_tools.measure import show_summary, write_summary


def cache_command(
    preset: Annotated[str, typer.Option(help=f"Shape of the policy: {', '.join(SHAPES)}.")] = "demo",
    ads: Annotated[int, typer.Option(min=100, help="Live ads.")] = 20_000,
    level_sizes: Annotated[str, typer.Option(help="Codes of every level; by the number of ads if left out.")] = "",
    widths: Annotated[str, typer.Option(help="The policy's own widths, one per level.")] = "128-256-512",
    candidates: Annotated[int, typer.Option(min=1, max=512, help="Ads wanted per request.")] = 20,
    budget_ms: Annotated[float, typer.Option(min=1.0, help="Latency budget of each request.")] = 100.0,
    load: Annotated[int, typer.Option(min=1, help="Where shares are told, in % of the capacity without cache.")] = 80,
    overload: Annotated[int, typer.Option(min=1, help="Where answers in budget are compared, likewise.")] = 200,
    turns: Annotated[int, typer.Option(min=1, help="How often both are measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each load that count, once the cache is filled.")] = 60.0,
    capacity_seconds: Annotated[float, typer.Option(min=0.5, help="Of each step in the search of the capacity.")] = 4.0,
    keep_seconds: Annotated[float, typer.Option(min=1.0, max=3600.0, help="How long answers are kept.")] = 60.0,
    churn: Annotated[float, typer.Option(min=0.0, help="Ads to pause, and to create, a second under load.")] = 0.2,
    device: Annotated[str, typer.Option(help="Torch device of the policies.")] = "cpu",
    compute_type: Annotated[str, typer.Option(help="What their layers compute in.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of a model call.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on there.")] = Path(
        "out/bench-cache"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Put the sessions of the simulated market on two generators, with the result cache and without it.

    A second of the market is a second of the clock; so many users come that the load is reached. Ads are paused and
    created meanwhile, and none that is paused may be returned. Everything shares this machine: the generators, their
    neighbours, the database and the client.
    """
    shape = shape_of(preset, ads, level_sizes, widths, device, compute_type, threads, seed)
    plan = Plan(
        load_pct=load,
        overload_pct=overload,
        turns=turns,
        seconds=seconds,
        capacity_seconds=capacity_seconds,
        keep_s=keep_seconds,
        budget_s=1e-3 * budget_ms,
        candidates=candidates,
        churn_per_s=churn,
        seed=seed,
    )

    async def measure(stage: Stage, client: ProcessPoolExecutor, state: RunState, tell: Tell) -> dict[str, Figure]:
        own_seed = plan.seed + state.attempt - 1  # a run that goes on repeats no turn of the one before
        visitors = Visitors(stage.market, read_interactions(stage.market_folder), own_seed)
        churn = Churn(stage.sids, stage.ad_ids, stage.spare, plan.churn_per_s, plan.seed)
        return await Session(stage, plan, client, churn, visitors, tell, state).measure()

    found = measured_on(shape, plan.generators, plan, out, measure)
    document = write_summary(found, seed, out)
    show_summary(document, found, out, as_json)
