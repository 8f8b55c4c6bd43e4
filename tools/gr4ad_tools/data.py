"""`gr4ad data`: check, convert and simulate data folders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from gr4ad_core.learning.data_folder import DataFolderError, Problem, check_folder, read_interactions, read_items
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gr4ad_tools.amazon import AmazonError, convert
from gr4ad_tools.leave_one_out import leave_one_out, write_training_folder
from gr4ad_tools.simulate import SCENARIOS, Market

app = typer.Typer(no_args_is_help=True)
console = Console()


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Data folder: items.jsonl[.gz] and interactions.csv[.gz].")],
    limit: Annotated[int, typer.Option(min=1, help="Problems shown at most.")] = 50,
) -> None:
    """Say what is wrong with a data folder, line by line; exit code 1 if anything is."""
    problems = check_folder(folder)
    if problems:
        console.print(problem_table(problems[:limit]))
        more = f", the first {limit} are shown" if len(problems) > limit else ""
        console.print(f"[red]{len(problems)} problems{more}[/]")
        raise typer.Exit(1)
    interactions = read_interactions(folder)
    console.print(
        f"[green]good[/]: {len(read_items(folder)):,} items, {len(interactions.user_ids):,} users, "
        f"{len(interactions.items):,} interactions"
    )


def problem_table(problems: list[Problem]) -> Table:
    """Return problems as a table, one row each."""
    table = Table("where", "field", "value", "remedy", show_lines=False)
    for problem in problems:
        where = f"{problem.file}:{problem.line}" if problem.line else problem.file
        table.add_row(*(_plain(cell) for cell in (where, problem.field, problem.value, problem.remedy)))
    return table


@app.command("hold-out")
def hold_out_command(
    folder: Annotated[Path, typer.Argument(help="Data folder to split.")],
    out: Annotated[Path, typer.Argument(help="Data folder to make, for training; `gr4ad eval` takes the whole one.")],
) -> None:
    """Write the part of a data folder that a policy may be trained on, without each user's last two chosen events."""
    try:
        split = leave_one_out(read_interactions(folder))
    except DataFolderError as error:
        console.print(f"[red]{error}[/]", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    write_training_folder(folder, split.train, out)
    console.print(
        f"{len(split.train.items):,} of {len(split.interactions.items):,} interactions for training in {out}; "
        f"{len(split.users_M):,} users to score"
    )


@app.command()
def amazon(
    reviews: Annotated[Path, typer.Argument(help="Reviews, one JSON object a line, plain or gzip.")],
    meta: Annotated[Path, typer.Argument(help="Product metadata, JSON or Python literals a line, plain or gzip.")],
    out: Annotated[Path, typer.Argument(help="Data folder to make; must not exist yet.")],
    core: Annotated[int, typer.Option(min=1, help="Keep users and items with at least this many reviews.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of reviews with equal times.")] = 0,
) -> None:
    """Convert the raw public Amazon review files into a data folder."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            tasks = {name: progress.add_task(name, total=1.0) for name in ("reviews", "metadata")}
            summary = convert(
                reviews, meta, out, core=core, seed=seed,
                on_progress=lambda name, share: progress.update(tasks[name], completed=share),
            )  # fmt: skip
    except AmazonError as error:
        console.print(f"[red]{_plain(str(error))}[/]", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(
        f"{out}: {summary.items:,} items, {summary.users:,} users, {summary.interactions:,} interactions "
        f"of {summary.reviews:,} reviews; {summary.untitled:,} items without a title"
    )


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Data folder to write.")],
    scenario: Annotated[str, typer.Option(help=f"One of {', '.join(SCENARIOS)}.")] = "steady",
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
) -> None:
    """Write the catalogue and the log of a simulated market as a data folder."""
    if scenario not in SCENARIOS:
        raise typer.BadParameter(f"scenario is {scenario!r}: use one of {', '.join(SCENARIOS)}")
    began = time.monotonic()
    with console.status(f"Simulating {scenario}, seed {seed}"):
        market = Market(scenario, seed)
        log = market.write_folder(out)
    impressions, clicks = int(log.impressions_N.sum()), int(log.clicks_N.sum())
    console.print(
        f"{out}: {len(market.items):,} ads, {len(market.user_ids):,} users, {len(log):,} events kept of "
        f"{impressions:,} impressions, {clicks:,} clicks ({clicks / impressions:.2%}), "
        f"{int(log.conversions_N.sum()):,} conversions\n"
        f"simulator {market.version}, {time.monotonic() - began:.1f} s"
    )


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
