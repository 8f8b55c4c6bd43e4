"""`gr4ad bench index`: what one look-up of a search costs as the catalogue grows, and what one change of it costs."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer
from gr4ad_core.sid.trie import LiveTrie
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gr4ad_tools import figures
from gr4ad_tools.bench.sid_indexes import (
    DictTrie,
    FrozenCsr,
    Ints,
    MakeIndex,
    OurTrie,
    SidIndex,
    SortedSids,
    generated_sids,
    live_slot,
)
from gr4ad_tools.call_error import leave
from gr4ad_tools.codebook import parse_sizes
from gr4ad_tools.figures import Figure
from gr4ad_tools.measure import show_summary, write_summary

LEVEL_SIZES: Final = (16384, 4096, 1024)
BEAMS: Final = 512
"""Nodes of one step: the live prefixes of two codes that a search holds."""
LEAST_SIDS: Final = 3 * BEAMS
"""SIDs that have as many such prefixes."""
WARM_UP: Final = 10
"""First rounds that do not count."""
BASELINES: Final[Mapping[str, MakeIndex]] = {"dict": DictTrie, "bisect": SortedSids, "csr": FrozenCsr}
LOOK_EVERY: Final = 50
"""Of so many changes one is looked up right after it."""


class WrongAnswerError(Exception):
    """An index gave other answers than it should."""


@dataclass
class Timed:
    """An index, and how long its steps took, in microseconds."""

    index: SidIndex
    step_us: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Workload:
    """What to measure.

    Attributes:
        sizes: Live SIDs of each index.
        compare_at: The size at which others are measured beside ours, and changes are made.
        rounds: Steps of each index.
        changes: Inserts, and as many removals.
        seed: Of every random choice.
    """

    sizes: tuple[int, ...]
    compare_at: int
    rounds: int
    changes: int
    seed: int


def measure(workload: Workload, bar: Progress) -> dict[str, Figure]:
    """Build all indexes, let them take turns in random order, then change ours one ad at a time.

    Every answer is compared with the sorted SIDs. Between two steps of an index all others take theirs, and each step
    asks for other nodes, so that little of what it reads is in a cache.

    Raises:
        WrongAnswerError: An index gave other pairs, or a change was not visible to the next look-up.
    """
    rng = np.random.default_rng(workload.seed)
    timed: dict[str, Timed] = {}
    truths: dict[int, SortedSids] = {}
    found: dict[str, Figure] = {}
    for size in workload.sizes:
        task = bar.add_task(f"{size:,} SIDs: build", total=1)
        sids_NT = generated_sids(size, LEVEL_SIZES, rng)
        started = time.perf_counter()
        timed[short(size)] = Timed(OurTrie(sids_NT, LEVEL_SIZES))
        found[f"build_seconds_{short(size)}"] = Figure(time.perf_counter() - started, "s")
        truths[size] = SortedSids(sids_NT, LEVEL_SIZES)
        if size == workload.compare_at:
            compared_NT = sids_NT
            for name, make in BASELINES.items():
                timed[f"{short(size)}_{name}"] = Timed(make(sids_NT, LEVEL_SIZES))
        bar.update(task, completed=1)
    gc.collect()
    gc.freeze()  # millions of objects of the dictionaries are not looked at while others are timed
    task = bar.add_task("steps in turn", total=workload.rounds)
    with torch.inference_mode():
        for number in range(WARM_UP + workload.rounds):
            for size, truth in truths.items():
                chosen_P = rng.choice(round(size / 3), BEAMS, replace=False)
                expected = truth.step(truth.prefixes(chosen_P))
                mine = [name for name in timed if name.partition("_")[0] == short(size)]
                for name in rng.permutation(mine):
                    _step(name, timed[name], chosen_P, expected, counts=number >= WARM_UP)
            bar.update(task, completed=number + 1 - WARM_UP)
    for name, each in timed.items():
        found |= _spread(f"step_us_{name}", each.step_us)
    found |= _ratios(found, workload)
    ours = timed[short(workload.compare_at)].index
    assert isinstance(ours, OurTrie)
    found["bytes_per_ad"] = Figure(ours.trie.nbytes / ours.trie.size, "bytes", ours.trie.size)
    task = bar.add_task("single inserts and removals", total=1)
    found |= _changes(ours.trie, compared_NT, workload.changes, rng)
    bar.update(task, completed=1)
    gc.unfreeze()
    found["peak_gib"] = Figure(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
    return found


def _step(name: str, timed: Timed, chosen_P: Ints, expected: tuple[Ints, Ints], *, counts: bool) -> None:
    prefixes = timed.index.prefixes(chosen_P)
    started = time.perf_counter()
    answer = timed.index.step(prefixes)
    step_us = 1e6 * (time.perf_counter() - started)
    if counts:
        timed.step_us.append(step_us)
    for mine, wanted in zip(timed.index.pairs(answer), expected, strict=True):
        if not np.array_equal(mine, wanted):
            raise WrongAnswerError(f"index {name} gave other pairs of node and code than the sorted SIDs")


def _changes(trie: LiveTrie, sids_NT: Ints, changes: int, rng: np.random.Generator) -> dict[str, Figure]:
    """Insert new ads, half of them below live prefixes of two codes, and remove as many of all that are then live."""
    live = {tuple(sid) for sid in sids_NT.tolist()}
    below_NT = sids_NT[rng.integers(0, len(sids_NT), changes)].copy()
    below_NT[::2, 1] = rng.integers(0, LEVEL_SIZES[1], len(below_NT[::2]))
    below_NT[:, 2] = rng.integers(0, LEVEL_SIZES[2], changes)
    inserts = [sid for sid in map(tuple, below_NT.tolist()) if sid not in live]
    everything = [*live, *inserts]
    removals = [everything[place] for place in rng.choice(len(everything), len(inserts), replace=False).tolist()]
    insert_us, remove_us = [], []
    for number, sid in enumerate(inserts):
        slot = len(live) + number
        started = time.perf_counter()
        trie.insert(sid, slot)
        insert_us.append(1e6 * (time.perf_counter() - started))
        if number % LOOK_EVERY == 0 and live_slot(trie, sid) != slot:
            raise WrongAnswerError(f"sid {sid}: inserted, and not found by the next look-up")
    found = {"bytes_per_ad_after_inserts": Figure(trie.nbytes / trie.size, "bytes", trie.size)}
    for number, sid in enumerate(removals):
        started = time.perf_counter()
        trie.remove(sid)
        remove_us.append(1e6 * (time.perf_counter() - started))
        if number % LOOK_EVERY == 0 and live_slot(trie, sid) is not None:
            raise WrongAnswerError(f"sid {sid}: removed, and found by the next look-up")
    for name, samples in (("insert_us", insert_us), ("remove_us", remove_us)):
        found |= {f"{name}_p{q}": figures.percentile(samples, q, "µs") for q in (50, 99)}
    return found


def _spread(name: str, samples: list[float]) -> dict[str, Figure]:
    median = figures.percentile(samples, 50, "µs")
    return {name: median, **{f"{name}_p{q}": figures.percentile(samples, q, "µs") for q in (10, 90)}}


def _ratios(found: Mapping[str, Figure], workload: Workload) -> dict[str, Figure]:
    small, large, at = short(min(workload.sizes)), short(max(workload.sizes)), short(workload.compare_at)
    n = workload.rounds
    ratios = {f"step_growth_{small}_{large}": found[f"step_us_{large}"].value / found[f"step_us_{small}"].value}
    for name in BASELINES:
        ratios[f"step_{name}_over_ours_{at}"] = found[f"step_us_{at}_{name}"].value / found[f"step_us_{at}"].value
    return {name: Figure(value, "times", n) for name, value in ratios.items()}


def short(count: int) -> str:
    """Return a number of SIDs as figures name it: 10000 is 1e4."""
    mantissa, exponent = f"{count:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def index_command(
    sizes: Annotated[str, typer.Option(help="Live SIDs of each index.")] = "10000,100000,1000000,10000000",
    compare_at: Annotated[int, typer.Option(help="The size to compare at and to make changes at.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each index.")] = 1000,
    changes: Annotated[int, typer.Option(min=1, help="Inserts, and as many removals.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/bench-index"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Time one step of 512 prefixes to all their live codes at several sizes, beside a trie of dictionaries, bisection
    and a frozen CSR trie, and single inserts and removals."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a policy's process has by default
    try:
        workload = Workload(parse_sizes(sizes) or (), compare_at, rounds, changes, seed)
        if compare_at not in workload.sizes or min(workload.sizes) < LEAST_SIDS:
            leave(f"--sizes: {sizes}: give sizes from {LEAST_SIDS} on, --compare-at {compare_at} among them")
        with Progress(*columns, console=Console(stderr=True)) as bar:
            found = measure(workload, bar)
    except (ValueError, WrongAnswerError) as error:
        leave(str(error))
    except KeyboardInterrupt:
        leave("interrupted: nothing was kept, the same command begins anew", code=130)
    finally:
        torch.set_num_threads(threads)
    document = write_summary(found, seed, out)
    show_summary(document, found, out, as_json)
