"""Steps that take turns, and what is said of the times they took."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final

import numpy as np
import torch
from gr4ad_core.decoding.memory import keep_freed_memory
from rich.progress import Progress

from gr4ad_tools import figures
from gr4ad_tools.bootstrap import CONFIDENCE, RESAMPLES
from gr4ad_tools.figures import Figure

Step = Callable[[int], object]
"""What is timed; it is told the number of its round."""

WARM_UP: Final = 2
"""First rounds that do not count."""


@contextmanager
def decoding_with(threads: int) -> Iterator[None]:
    """Let torch use so many threads in the block, 0 for all cores, and memory as the process of a policy does."""
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
