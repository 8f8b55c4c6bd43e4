"""The `gr4ad` command: everything the suite does, one command each."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from gr4ad_runtime.errors import Gr4adError
from rich.console import Console

from gr4ad_tools import ab, bench, codebook, data, ingest, measure, reward, train, up
from gr4ad_tools.codebook_report.page import report_command
from gr4ad_tools.demo.run import DataError, DemoOptions, run_demo
from gr4ad_tools.demo.seeds import SeedFailedError, run_seeds
from gr4ad_tools.demo.state import OutputFolderError
from gr4ad_tools.figures import Figure

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A generative recommender for advertising: one model writes the semantic IDs of the ads worth showing.",
)
app.command("up")(up.up)
app.add_typer(data.app, name="data", help="Check, convert and simulate data folders.")
codebook.app.command("report")(report_command)
app.add_typer(codebook.app, name="codebook", help="Fit, activate, list and show codebooks.")
app.command("ingest")(ingest.ingest_command)
app.add_typer(ingest.sid_app, name="sid")
app.command("train")(train.train_command)
app.add_typer(train.policy_app, name="policy", help="List published policies and activate them.")
app.command("eval")(measure.evaluate)
app.command("traffic")(measure.traffic)
app.command("live-index")(measure.live_index)
app.add_typer(reward.app, name="reward", help="Look into the reward log.")
app.add_typer(bench.app, name="bench", help="Measure single parts beside what they compete with.")
app.add_typer(ab.app, name="ab", help="Compare the arms of an A/B split.")


@app.command()
def demo(
    data_folder: Annotated[
        Path | None,
        typer.Option("--data", exists=True, file_okay=False, help="Data folder; a simulated market by default."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run and its report.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    preset: Annotated[
        str, typer.Option(help="Training recipe; demo on a simulated market and default on a data folder.")
    ] = "",
    seeds: Annotated[
        int, typer.Option(min=1, help="Repeat the whole run for so many seeds from --seed on, and take the means.")
    ] = 1,
    preference: Annotated[
        train.Preference, typer.Option(help="What moves the policy towards what pays online; dpo is the foil.")
    ] = train.Preference.RSPO,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Kill each service in turn while the policy learns online.")
    ] = False,
) -> None:
    """Run the whole loop here and write summary.json and report.html; interrupted, it goes on where it was."""
    console = Console()
    command = " ".join(["gr4ad", *sys.argv[1:]])
    options = DemoOptions(data_folder, out, seed, preset, command, chaos, preference)
    try:
        if seeds > 1:
            document = run_seeds(options, seeds, console)
        else:
            document, _ = asyncio.run(run_demo(options, console))
    except (DataError, OutputFolderError, SeedFailedError, train.TrainingRunError, Gr4adError) as error:
        console.print(f"[red]{error}[/]", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print(f"Interrupted. The same command goes on where it was; what there is lies in {out}.")
        raise typer.Exit(130) from None
    measure.print_figures({name: Figure(**figure) for name, figure in document["figures"].items()}, console)
    reports = out / ("report.html" if seeds == 1 else "seed-*/report.html")
    console.print(f"summary  {out / 'summary.json'}\nreport   {reports}", soft_wrap=True)


if __name__ == "__main__":
    app()
