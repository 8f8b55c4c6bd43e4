"""The demo over several seeds: each a whole run in a process of its own, then the mean of every figure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from gr4ad_tools import figures
from gr4ad_tools.demo.run import DemoOptions, source_of
from gr4ad_tools.demo.state import RunState


class SeedFailedError(Exception):
    """The demo of one seed did not end well; it has said why."""


def run_seeds(options: DemoOptions, seeds: int, console: Console) -> dict[str, Any]:
    """Run the demo for `seeds` seeds, from that of the options on; interrupted, it goes on with the seed it was at.

    Returns:
        The summary of all, which is also in `summary.json`; each run's own is in a folder below.

    Raises:
        SeedFailedError: A run did not end well; the others before it are kept.
        OutputFolderError: The output folder holds something else.
    """
    numbers = range(options.seed, options.seed + seeds)
    source = source_of(options)
    parameters = {**source, "seeds": list(numbers), "preset": options.preset, "chaos": options.chaos}
    parameters |= {"preference": options.preference}
    state = RunState.open(options.out, parameters)
    for seed in numbers:
        name = f"seed-{seed}"
        if name in state.results:
            continue
        console.rule(f"seed {seed}")
        run_seed(replace(options, out=options.out / name, seed=seed))
        state.done(name, json.loads((options.out / name / "summary.json").read_text())["figures"])
    means = mean_figures([state.results[f"seed-{seed}"] for seed in numbers])
    document = figures.document(means, options.command, options.seed, seeds=list(numbers), source=source)
    figures.write_json(options.out / "summary.json", document)
    state.finish()
    return document


def run_seed(options: DemoOptions) -> None:
    """Run the demo in a process of its own: telemetry, once set up, belongs to a process for good.

    Raises:
        SeedFailedError: It did not end well.
    """
    command = [sys.executable, "-m", "gr4ad_tools.cli", "demo", "--out", str(options.out), "--seed", str(options.seed)]
    command += ["--data", str(options.data)] if options.data else []
    command += ["--preset", options.preset] if options.preset else []
    command += ["--chaos"] if options.chaos else []
    command += ["--preference", options.preference]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SeedFailedError(f"the demo of seed {options.seed} ended with exit code {done.returncode}")


def mean_figures(runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, figures.Figure]:
    """Return the mean, least and largest value over the runs of each figure that all of them have.

    The ends of an interval are those of Student's interval of 95 % around the mean: means of the runs' own ends would
    span no such thing.
    """
    common = [name for name in runs[0] if all(name in run for run in runs)]
    means = {name: figures.mean([run[name]["value"] for run in runs], runs[0][name]["unit"]) for name in common}
    for name in common:
        base, end = name.rpartition("_ci_")[::2]
        values = [run[of]["value"] for of in (base, f"{base}_pct") if of in common for run in runs]
        if base and len(runs) > 1:
            half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
            value = float(np.mean(values) + (half if end == "high" else -half))
            means[name] = figures.Figure(value, runs[0][name]["unit"], len(values))
    return means
