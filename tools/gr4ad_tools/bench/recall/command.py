"""The command `gr4ad bench recall`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer
from gr4ad_core.learning.checkpoint import load_checkpoint, save_checkpoint
from gr4ad_core.learning.data_folder import DataFolderError, Item
from gr4ad_core.learning.presets import PRESETS
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.model.lazy_ar import LazyAr
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gr4ad_tools.bench.decode.turns import apart
from gr4ad_tools.bench.held_out_policy import (
    ad_table,
    encode_ads,
    give_sids,
    held_out_targets,
    read_split,
    train_policy,
)
from gr4ad_tools.bench.recall.answers import PATHS, Answers, answer
from gr4ad_tools.bench.recall.comparison import recall_figures
from gr4ad_tools.call_error import leave
from gr4ad_tools.demo.phases import fingerprint
from gr4ad_tools.demo.state import OutputFolderError, RunState
from gr4ad_tools.leave_one_out import LeaveOneOut
from gr4ad_tools.measure import show_summary, write_summary
from gr4ad_tools.simulate import SCENARIOS, Market, MarketConfig, version_hash

GENERATED: Final = replace(SCENARIOS["steady"](), users=12_000)
"""The market of a run without a data folder: users enough to tell a difference of 1 % in recall."""


def recall_command(
    data: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Data folder; a generated market if left out.")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help=f"Recipe of the policy, of {', '.join(PRESETS)}; if left out, demo on the market, default on a folder."
        ),
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 for all cores.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on there.")] = Path(
        "out/bench-recall"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Train a policy, and compare what low precision and a plain search find for held-out users with float32."""
    preset = preset or ("demo" if data is None else "default")
    if preset not in PRESETS:
        leave(f"--preset: {preset}: choose of {', '.join(PRESETS)}")
    try:
        found = recall_figures(apart(threads, _answers, data or GENERATED, preset, seed, out))
    except (ValueError, DataFolderError, OutputFolderError) as error:
        leave(str(error))
    except KeyboardInterrupt:
        leave(f"interrupted: the same command goes on where it was; what there is lies in {out}", code=130)
    document = write_summary(found, seed, out)
    show_summary(document, found, out, as_json)


def _answers(data: Path | MarketConfig, preset: str, seed: int, out: Path) -> dict[str, Answers]:
    """Return the answers of all paths, one path after the other, by a policy that is trained once."""
    source = {"data": fingerprint(data)} if isinstance(data, Path) else {"market": version_hash(data)}
    asked_for = {"preset": preset, "seed": seed, "threads": torch.get_num_threads()}
    state = RunState.open(out, source | asked_for)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        folder = data if isinstance(data, Path) else _market(data, seed, state, bar)
        items, split = read_split(folder, seed)
        if not len(split.users_M):
            raise ValueError(f"--data: {folder}: no user has three clicks or conversions: give longer histories")
        model, targets = _policy(items, split, preset, seed, state, bar)
        for path in PATHS:
            if path not in state.results:
                task = bar.add_task(f"answer by {path}", total=len(targets))
                answers = answer(path, model, targets, partial(bar.advance, task))
                np.savez(_file_of(path, state), **vars(answers))
                state.done(path, len(targets))
    state.finish()
    return {path: _kept(_file_of(path, state)) for path in PATHS}


def _file_of(path: str, state: RunState) -> Path:
    return state.folder / f"{path}.npz"


def _kept(file: Path) -> Answers:
    with np.load(file) as arrays:
        return Answers(**arrays)


def _market(config: MarketConfig, seed: int, state: RunState, bar: Progress) -> Path:
    """Return the data folder of a generated market, written once."""
    folder = state.folder / "market"
    if "market" not in state.results:
        task = bar.add_task("generate a market", total=1)
        Market(config=config, seed=seed).write_folder(folder)
        state.done("market", version_hash(config))
        bar.update(task, completed=1)
    return folder


def _policy(
    items: Sequence[Item], split: LeaveOneOut, preset: str, seed: int, state: RunState, bar: Progress
) -> tuple[LazyAr, TrainingSet]:
    """Return the policy, trained once, and the users' held-out ads."""
    folder, sids_file = state.folder / "policy", state.folder / "sids.npy"
    if "sids" not in state.results:
        task = bar.add_task("learn SIDs", total=1)
        np.save(sids_file, give_sids(items, encode_ads(items, split.train, seed, head=True), seed))
        state.done("sids", len(items))
        bar.update(task, completed=1)
    ads = ad_table(items, np.load(sids_file))
    if "policy" not in state.results:
        task = bar.add_task("train a policy", total=None)
        trained = train_policy(
            split,
            ads,
            preset,
            seed,
            torch.get_num_threads(),
            lambda now: bar.update(task, completed=now.step, total=now.total_steps),
        )
        shutil.rmtree(folder, ignore_errors=True)
        extra = {"preset": preset, "seed": seed}
        save_checkpoint(folder, trained.model, folder.name, sids_file.stem, trained.metrics, extra)
        state.done("policy", trained.metrics)
    return load_checkpoint(folder)[0], held_out_targets(split, ads)
