"""What the commands share that measure running services: what is served, and how a measurement is carried out."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from gr4ad_core.model.config import COMPUTE_TYPES
from gr4ad_runtime.errors import Gr4adError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gr4ad_tools.bench.serve.session import NoCapacityError
from gr4ad_tools.bench.serve.stage import READY_S, SHAPES, Shape, Stage, parse_widths, running
from gr4ad_tools.call_error import describe, leave
from gr4ad_tools.codebook import parse_sizes
from gr4ad_tools.demo.state import OutputFolderError, RunState
from gr4ad_tools.figures import Figure
from gr4ad_tools.process_guard import guarded_process

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Tell = Callable[[str], None]
Measure = Callable[[Stage, ProcessPoolExecutor, RunState, Tell], Awaitable[dict[str, Figure]]]
"""Measures on a running stage, with a client's process, what has not been measured, and tells what is under way."""


def shape_of(
    preset: str,
    ads: int,
    level_sizes: str,
    widths: str,
    device: str,
    compute_type: str,
    threads: int,
    seed: int,
) -> Shape:
    """Return what the options of a command ask to serve, or leave with what is wrong with them."""
    if preset not in SHAPES:
        leave(f"--preset: {preset}: choose one of {', '.join(SHAPES)}")
    if compute_type not in COMPUTE_TYPES:
        leave(f"--compute-type: {compute_type}: choose one of {', '.join(COMPUTE_TYPES)}")
    try:
        sizes = parse_sizes(level_sizes) or ()
    except ValueError as error:
        leave(str(error))
    if len(sizes) not in (0, 3):
        leave(f"--level-sizes: {level_sizes}: give three, such as 4096,1024,256")
    try:
        return Shape(preset, ads, sizes, parse_widths(widths), device, compute_type, threads, seed)
    except ValueError:
        leave(f"--widths: {widths}: give a positive width for each of three levels, such as 32-64-128")


def measured_on(
    shape: Shape, generators: Mapping[str, Mapping[str, str]], plan: DataclassInstance, out: Path, measure: Measure
) -> dict[str, Figure]:
    """Start the services in a folder that is gone afterwards, and return what is measured; leave with what went wrong.

    Args:
        shape: What to serve.
        generators: Environment variables that set each generator apart, by its name.
        plan: What to measure; with the shape it tells whether an interrupted run can go on.
        out: Folder of the parts that have been measured.
        measure: Measures the others.
    """

    async def run(tell: Tell) -> dict[str, Figure]:
        with tempfile.TemporaryDirectory() as scratch, guarded_process() as client:
            async with running(Path(scratch), shape, generators, tell) as stage:
                return await measure(stage, client, state, tell)

    parameters = json.loads(json.dumps({"shape": asdict(shape), "plan": asdict(plan)}))
    try:
        state = RunState.open(out, parameters)
    except OutputFolderError as error:
        leave(str(error))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("start")
            found = asyncio.run(run(lambda what: bar.update(task, description=what)))
        state.finish()
        return found
    except grpc.aio.AioRpcError as error:
        leave(describe(error, "a service"))
    except (Gr4adError, NoCapacityError) as error:
        leave(str(error))
    except TimeoutError:
        leave(f"--ads: {shape.ads}: not served by the generators in {READY_S:g} s: free the machine, or give fewer")
    except KeyboardInterrupt:
        leave(f"interrupted: the same command goes on where it was; what there is lies in {out}", code=130)
