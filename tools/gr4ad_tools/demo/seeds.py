"""The demo over several seeds: each a whole run of its own, then the mean of every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from gr4ad_tools import figures
from gr4ad_tools.demo.run import DemoOptions, run_demo
from gr4ad_tools.demo.state import RunState


async def run_seeds(options: DemoOptions, seeds: int, console: Console) -> dict[str, Any]:
    """Run the demo for `seeds` seeds, from that of the options on; interrupted, it goes on with the seed it was at.

    Returns:
        The summary of all, which is also in `summary.json`; each run's own is in a folder below.

    Raises:
        As `run_demo` does.
    """
    numbers = range(options.seed, options.seed + seeds)
    parameters = {"seeds": list(numbers), "data": str(options.data or ""), "preset": options.preset}
    state = RunState.open(options.out, parameters)
    for seed in numbers:
        name = f"seed-{seed}"
        if name in state.results:
            continue
        console.rule(f"seed {seed}")
        document, _ = await run_demo(replace(options, out=options.out / name, seed=seed), console)
        state.done(name, document["figures"])
    means = mean_figures([state.results[f"seed-{seed}"] for seed in numbers])
    document = figures.document(means, options.command, options.seed, seeds=list(numbers))
    figures.write_json(options.out / "summary.json", document)
    state.finish()
    return document


def mean_figures(runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, figures.Figure]:
    """Return the mean, least and largest value over the runs of each figure that all of them have."""
    common = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: figures.mean([run[name]["value"] for run in runs], runs[0][name]["unit"]) for name in common}
