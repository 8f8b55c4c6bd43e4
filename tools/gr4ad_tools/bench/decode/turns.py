"""Steps that take turns in a process of their own, and what is said of the times they took."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final, TypeVar

import numpy as np
import torch
from gr4ad_core.decoding.memory import keep_freed_memory
from rich.progress import Progress

from gr4ad_tools import figures
from gr4ad_tools.bootstrap import CONFIDENCE, RESAMPLES
from gr4ad_tools.figures import Figure
from gr4ad_tools.process_guard import guarded_process

Found = TypeVar("Found")
Step = Callable[[int], object]
"""What is timed; it is told the number of its round."""

WARM_UP: Final = 2
"""First rounds that do not count."""


def apart(threads: int, measure: Callable[..., Found], *arguments: object) -> Found:
    """Call a function in a process of its own, for which torch may use the whole machine, with memory as a policy's.

    Its threads spin while they wait for each other: most operations are over before a thread that sleeps is awake.
    Other commands' threads sleep, since they share the cores with services. Torch is told once, as it starts.

    Args:
        threads: Of torch; 0 for all cores.
        measure: Of a module's top level, as are the arguments' types.
        arguments: Its own.
    """
    with _spinning(), guarded_process() as process:
        return process.submit(_with_threads, threads or os.cpu_count() or 1, measure, *arguments).result()


@contextmanager
def _spinning() -> Iterator[None]:
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = "active"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]
        else:
            os.environ["OMP_WAIT_POLICY"] = before


def _with_threads(threads: int, measure: Callable[..., Found], *arguments: object) -> Found:
    keep_freed_memory()
    torch.set_num_threads(threads)
    return measure(*arguments)


def in_turn(steps: Mapping[str, Step], rounds: int, bar: Progress, what: str) -> dict[str, list[float]]:
    """Let steps take turns, A B A B …, in this process, and return the seconds of each in each round that counts.

    Times of one round are a pair: what else the machine does weighs on both. Each turn begins with a call that is not
    timed: a server does one kind of work after the other, and does not find another kind's data in its caches. On a GPU
    a step has taken its time when the GPU is done.

    Args:
        steps: By name, in the order of a round.
        rounds: How many count; `WARM_UP` more come first.
        bar: Shows the rounds.
        what: Its line.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    task = bar.add_task(what, total=rounds)
    gc.collect()
    gc.freeze()  # what is there is not looked at again while steps are timed
    try:
        for number in range(-WARM_UP, rounds):
            for name, step in steps.items():
                _seconds(step, number)
                taken = _seconds(step, number)
                if number >= 0:
                    seconds[name].append(taken)
            bar.update(task, completed=max(number + 1, 0))
    finally:
        gc.unfreeze()
    return seconds


def _seconds(step: Step, number: int) -> float:
    started = perf_counter()
    step(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return perf_counter() - started


def ratio(name: str, above: Sequence[float], below: Sequence[float], scale: float = 1.0) -> dict[str, Figure]:
    """Return the median of paired ratios, with the smallest and largest, and the ends of its bootstrap interval.

    Args:
        name: Of the figure; the interval's ends are `{name}_ci_low` and `{name}_ci_high`.
        above: Seconds of each round.
        below: Seconds of the other step in the same rounds.
        scale: What each ratio is multiplied by.
    """
    ratios_N = scale * np.asarray(above) / np.asarray(below)
    n = len(ratios_N)
    resampled_BN = ratios_N[np.random.default_rng(0).integers(0, n, (RESAMPLES, n))]
    low, high = np.quantile(np.median(resampled_BN, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {
        name: Figure(float(np.median(ratios_N)), "times", n, float(ratios_N.min()), float(ratios_N.max())),
        f"{name}_ci_low": Figure(float(low), "times", n),
        f"{name}_ci_high": Figure(float(high), "times", n),
    }


def median_ms(seconds: Sequence[float]) -> Figure:
    """Return the median time in milliseconds."""
    return figures.percentile([1e3 * each for each in seconds], 50, "ms")
