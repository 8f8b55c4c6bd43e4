"""Commands that measure a running suite: held-out scoring, load, and the delay of catalogue changes."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gr4ad_tools import evaluation, figures
from gr4ad_tools.demo import phases
from gr4ad_tools.figures import Figure, percentile
from gr4ad_tools.ingest import to_ad
from gr4ad_tools.live_index import probe
from gr4ad_tools.report_page import format_value
from gr4ad_tools.traffic import run_users

DataFolder = Annotated[Path, typer.Argument(help="Normalised data folder whose users are asked for.", exists=True)]
Generator = Annotated[str, typer.Option("--generator", envvar="GR4AD_AD_GENERATOR_ADDRESS", help="host:port")]
SidAssigner = Annotated[str, typer.Option("--sid-assigner", envvar="GR4AD_SID_ASSIGNER_ADDRESS", help="host:port")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


def evaluate(data: DataFolder, generator: Generator = "127.0.0.1:50052", as_json: AsJson = False) -> None:
    """Score the served policy on each user's last chosen ad, beside popularity and the transition graph."""

    async def run() -> dict[str, Figure]:
        _, split = phases.load(data)
        contexts = split.contexts()
        async with grpc.aio.insecure_channel(generator) as channel:
            with Progress(console=Console(stderr=True)) as progress:
                task = progress.add_task("Score held-out users", total=len(contexts))
                scored = await evaluation.score(
                    channel,
                    contexts,
                    split.interactions.item_ids,
                    run_id=f"eval-{uuid.uuid4().hex[:12]}",
                    candidate_count=phases.CANDIDATES,
                    on_answer=lambda: progress.advance(task),
                )
        return {
            **phases.score_figures(split, scored),
            **phases.baseline_figures(split),
            "failed_requests": Figure(scored.failures.total(), "requests", len(contexts)),
        }

    _print(asyncio.run(run()), as_json)


def traffic(
    data: DataFolder,
    generator: Generator = "127.0.0.1:50052",
    users: Annotated[int, typer.Option(min=1, max=1024, help="Concurrent users.")] = phases.USERS,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Let concurrent users ask, one request after the other, and measure how long each waits."""

    async def run() -> dict[str, Figure]:
        _, split = phases.load(data)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        async with grpc.aio.insecure_channel(generator) as channel:
            seen = await run_users(
                channel,
                split.contexts(),
                users=users,
                candidate_count=phases.CANDIDATES,
                run_id=f"traffic-{uuid.uuid4().hex[:12]}",
                until=stop,
            )
        requests = len(seen.answers) + seen.failed
        return {
            "qps": Figure(len(seen.answers) / seen.seconds, "requests/s", requests),
            "p50_ms": percentile(seen.latencies_ms, 50, "ms"),
            "p99_ms": percentile(seen.latencies_ms, 99, "ms"),
            "failed_requests": Figure(seen.failed, "requests", requests),
        }

    _print(asyncio.run(run()), as_json)


def live_index(
    data: DataFolder,
    generator: Generator = "127.0.0.1:50052",
    sid_assigner: SidAssigner = "127.0.0.1:50051",
    probes: Annotated[int, typer.Option(min=1, max=10_000, help="Ads to add and pause.")] = phases.PROBES,
    as_json: AsJson = False,
) -> None:
    """Add ads and pause them, and measure how long each change takes to show in what is generated."""

    async def run() -> dict[str, Figure]:
        items, split = phases.load(data)
        async with (
            grpc.aio.insecure_channel(generator) as generator_channel,
            grpc.aio.insecure_channel(sid_assigner) as sid_channel,
        ):
            delays = await probe(
                sid_channel,
                generator_channel,
                split.contexts(),
                {item.item_id: to_ad(item) for item in items},
                probes=probes,
                run_id=f"probe-{uuid.uuid4().hex[:12]}",
            )
        return phases.delay_figures(delays)

    _print(asyncio.run(run()), as_json)


def write_summary(found: dict[str, Figure], seed: int, out: Path) -> dict[str, Any]:
    """Write the figures of this command into `summary.json` of a folder, and return what it holds."""
    document = figures.document(found, " ".join(["gr4ad", *sys.argv[1:]]), seed)
    out.mkdir(parents=True, exist_ok=True)
    figures.write_json(out / "summary.json", document)
    return document


def show_summary(document: dict[str, Any], found: dict[str, Figure], out: Path, as_json: bool) -> None:
    """Print what `write_summary` wrote, as JSON or as a table, and where it lies, with the page beside it, if any."""
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        print_figures(found, Console())
    console = Console(stderr=True)
    for name, file in (("summary", "summary.json"), ("report", "report.html")):
        if (out / file).exists():
            console.print(f"{name:<9}{out / file}", soft_wrap=True)


def print_figures(found: dict[str, Figure], console: Console) -> None:
    """Show figures as a table."""
    table = Table("figure", "value", "unit", "n")
    for name, figure in found.items():
        table.add_row(name, format_value(figure), figure.unit, str(figure.n))
    console.print(table)


def _print(found: dict[str, Figure], as_json: bool) -> None:
    if as_json:
        command = " ".join(["gr4ad", *sys.argv[1:]])
        print(json.dumps(figures.document(found, command, seed=0), indent=2))
    else:
        print_figures(found, Console())
