"""The command `gr4ad bench decode`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch.profiler import ProfilerActivity, profile

from gr4ad_tools.bench.decode.comparisons import COMPARISONS, Rounds
from gr4ad_tools.bench.decode.turns import WARM_UP, apart
from gr4ad_tools.bench.decode.workload import Setting, Workload, engine_shape
from gr4ad_tools.call_error import leave
from gr4ad_tools.codebook import parse_sizes
from gr4ad_tools.demo.state import OutputFolderError, RunState
from gr4ad_tools.figures import Figure
from gr4ad_tools.measure import show_summary, write_summary

DEVICES: Final = ("cpu", "cuda")
PROFILE_ROWS: Final = 25


def decode_command(
    ads: Annotated[int, typer.Option(min=16, help="Live ads.")] = 100_000,
    level_sizes: Annotated[str, typer.Option(help="Codes of every level, powers of two.")] = "4096,1024,256",
    beams: Annotated[str, typer.Option(help="Beams to keep at every level.")] = "128,256,512",
    batch: Annotated[int, typer.Option(min=1, help="Requests of one model call.")] = 8,
    events: Annotated[int, typer.Option(min=4, help="Events of every user's history.")] = 128,
    d_model: Annotated[int, typer.Option(help="Width of the model; its feed-forward blocks are twice as wide.")] = 256,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 8,
    layers: Annotated[int, typer.Option(help="Decoder layers L.")] = 9,
    lazy: Annotated[int, typer.Option(min=1, help="Lazy layers K among them.")] = 6,
    sizes: Annotated[
        str, typer.Option(help="Live ads that the cost is measured at.")
    ] = "10000,100000,1000000,10000000",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each pair.")] = 20,
    generate_rounds: Annotated[int, typer.Option(min=1, help="Turns of Hugging Face's generate.")] = 5,
    only: Annotated[list[str] | None, typer.Option(help=f"Groups to measure, of {', '.join(COMPARISONS)}.")] = None,
    device: Annotated[str, typer.Option(help="Where to decode, cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 for all cores.")] = 0,
    profiled: Annotated[
        bool, typer.Option("--profile", help="Print where the time of one batch goes, and measure nothing.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on there.")] = Path(
        "out/bench-decode"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Time the decode engine beside itself without each of its tricks, a plain decoder and Hugging Face's generate."""
    chosen = only or list(COMPARISONS)
    for name in chosen:
        if name not in COMPARISONS:
            leave(f"--only: {name}: choose of {', '.join(COMPARISONS)}")
    if device not in DEVICES:
        leave(f"--device: {device}: choose of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        leave("--device: cuda: no accelerator is usable here: give --device cpu, or install a CUDA build of torch")
    try:
        config = engine_shape(
            parse_sizes(level_sizes) or (),
            d_model=d_model,
            n_heads=heads,
            n_layers=layers,
            n_lazy=lazy,
            max_history=events,
        )
        setting = Setting(config, ads, parse_sizes(beams) or (), batch, seed, device)
        counts = Rounds(rounds, generate_rounds, parse_sizes(sizes) or ())
        if profiled:
            print(apart(threads, profile_table, setting))
            return
        found = apart(threads, _measured, setting, counts, chosen, out)
    except (ValueError, OutputFolderError) as error:
        leave(str(error))
    except KeyboardInterrupt:
        leave(f"interrupted: the same command goes on where it was; what there is lies in {out}", code=130)
    document = write_summary(found, seed, out)
    show_summary(document, found, out, as_json)


def _measured(setting: Setting, counts: Rounds, chosen: Sequence[str], out: Path) -> dict[str, Figure]:
    """Return the figures of all groups, one group after the other."""
    threads = torch.get_num_threads()
    parameters = {**_plain(setting), **_plain(counts), "threads": threads, "groups": list(chosen)}
    state = RunState.open(out, parameters)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("draw the workload", total=1)
        work = Workload.draw(setting)
        bar.update(task, completed=1)
        for name in chosen:
            if name not in state.results:
                of_group = COMPARISONS[name](work, counts, bar)
                state.done(name, {key: asdict(figure) for key, figure in of_group.items()})
    state.finish()
    found = {key: Figure(**figure) for name in chosen for key, figure in state.results[name].items()}
    return {"threads": Figure(threads, "threads"), **found}


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass as what JSON gives back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value)))
    return plain


def profile_table(setting: Setting) -> str:
    """Return the operations of one batch that took the most time of their own on the setting's device."""
    work = Workload.draw(setting)
    for number in range(WARM_UP):
        work.decode(number)
    device = setting.device
    with profile(activities={ProfilerActivity.CPU, getattr(ProfilerActivity, device.upper())}) as recorded:
        work.decode(WARM_UP)
    table: str = recorded.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=PROFILE_ROWS)
    return table
