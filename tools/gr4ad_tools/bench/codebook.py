"""`gr4ad bench codebook`: how well tokenisers tell ads apart, and what they cost, on one catalogue in one run."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from gr4ad_core.learning.data_folder import DataFolderError
from gr4ad_core.metrics.sid_quality import sid_quality
from gr4ad_core.sid.codebook import default_level_sizes
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gr4ad_tools.bench.ad_vectors import AdVectors, folder_catalogue, generated_catalogue
from gr4ad_tools.bench.tokenisers import TOKENISERS, equal_sizes
from gr4ad_tools.call_error import leave
from gr4ad_tools.codebook import parse_sizes
from gr4ad_tools.demo.state import OutputFolderError, RunState
from gr4ad_tools.figures import Figure
from gr4ad_tools.measure import show_summary, write_summary
from gr4ad_tools.process_guard import guarded_process

BATCH = 1000
"""Ads assigned at a time: the most that one call of BatchCreateAdSids takes."""
GENERATED_ADS = 1_000_000
GENERATED_SIZES = (4096, 1024, 256)
FURTHER_SHARE = 0.1
"""Ads that come after the codebook was fitted, as a share of those it was fitted to."""
GIB = 2**30
KIB = 2**10


@dataclass(frozen=True)
class Catalogue:
    """What to measure on.

    Attributes:
        data: Data folder; None for a generated catalogue.
        ads: Ads that tokenisers are fitted to, of a generated catalogue.
        level_sizes: Codes of every level of our own; empty for the default of the folder's number of ads.
        seed: Of every random choice.
    """

    data: Path | None
    ads: int
    level_sizes: tuple[int, ...]
    seed: int

    def load(self) -> tuple[AdVectors, int]:
        """Return all ads, and how many of them tokenisers are fitted to; a folder has no further ones."""
        if self.data is not None:
            ads = folder_catalogue(self.data, self.seed)
            return ads, len(ads)
        return generated_catalogue(round(self.ads * (1.0 + FURTHER_SHARE)), self.seed), self.ads


def measure(name: str, catalogue: Catalogue) -> dict[str, Any]:
    """Fit one tokeniser and assign every ad; the body of a process of its own, whose memory is its own.

    Args:
        name: One of `TOKENISERS`.
        catalogue: What to measure on.

    Returns:
        Figures by name, as plain JSON.
    """
    ads, fitted = catalogue.load()
    sizes = catalogue.level_sizes or default_level_sizes(fitted)
    tokeniser = TOKENISERS[name](sizes if name == "mgmr" else equal_sizes(sizes))
    started = time.perf_counter()
    tokeniser.fit(_first(ads, fitted), catalogue.seed)
    fit_s = time.perf_counter() - started
    started = time.perf_counter()
    sids_NT = np.concatenate([tokeniser.assign(ads, rows) for rows in _batches(0, fitted)])
    assign_s = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    further, further_s = fitted, assign_s
    if len(ads) > fitted:
        started = time.perf_counter()
        for rows in _batches(fitted, len(ads)):
            tokeniser.assign(ads, rows)
        further, further_s = len(ads) - fitted, time.perf_counter() - started
    quality = sid_quality(sids_NT, tokeniser.level_sizes)
    found = {
        "cpr": Figure(quality.cpr, "ads per SID", fitted),
        "col": Figure(quality.col, "share of ads", fitted),
        "util": Figure(quality.util, "share of SIDs", fitted),
        "fit_seconds": Figure(fit_s, "s", fitted),
        "fit_assign_seconds": Figure(fit_s + assign_s, "s", fitted),
        "fit_peak_gib": Figure(peak_kib * KIB / GIB, "GiB"),
        "assign_ads_per_s": Figure(further / further_s, "ads/s", further),
    }
    return {key: vars(figure) for key, figure in found.items()}


def _first(ads: AdVectors, count: int) -> AdVectors:
    return AdVectors(
        ads.vectors_ND[:count], ads.conversion_types_N[:count], ads.advertiser_ids[:count], ads.product_ids[:count]
    )


def _batches(start: int, stop: int) -> list[range]:
    return [range(first, min(first + BATCH, stop)) for first in range(start, stop, BATCH)]


def codebook_command(
    data: Annotated[
        Path | None,
        typer.Option("--data", exists=True, file_okay=False, help="Data folder; a generated catalogue by default."),
    ] = None,
    ads: Annotated[int, typer.Option(min=1000, help="Ads of the generated catalogue.")] = GENERATED_ADS,
    level_sizes: Annotated[
        str, typer.Option(help="Codes of every level, the business level last; by the catalogue if left out.")
    ] = "",
    name: Annotated[
        str, typer.Option(help="Suffix of the figures: by default the folder's name, or the number of ads.")
    ] = "",
    only: Annotated[list[str] | None, typer.Option(help=f"Tokenisers to measure, of {', '.join(TOKENISERS)}.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results; an interrupted run goes on there.")] = Path(
        "out/bench-codebook"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Compare MGMR RQ-KMeans with RQ-KMeans of equal levels, RQ-VAE and hashing, at an equal number of SIDs."""
    chosen = only or list(TOKENISERS)
    for tokeniser in chosen:
        if tokeniser not in TOKENISERS:
            leave(f"--only: {tokeniser}: choose of {', '.join(TOKENISERS)}")
    suffix = name or (data.resolve().name if data is not None else short_number(ads))
    try:
        sizes = parse_sizes(level_sizes) or (GENERATED_SIZES if data is None else ())
        catalogue = Catalogue(data, ads, sizes, seed)
        found = _measured(catalogue, chosen, out)
    except (ValueError, DataFolderError, OutputFolderError) as error:
        leave(str(error))
    except KeyboardInterrupt:
        leave(f"interrupted: the same command goes on where it was; what there is lies in {out}", code=130)
    figures_found = {
        f"{tokeniser}_{key}_{suffix}": Figure(**figure)
        for tokeniser, of_tokeniser in found.items()
        for key, figure in of_tokeniser.items()
    }
    document = write_summary(figures_found, seed, out)
    show_summary(document, figures_found, out, as_json)


def _measured(catalogue: Catalogue, chosen: Sequence[str], out: Path) -> dict[str, Mapping[str, Any]]:
    """Return the figures of each tokeniser, measured one after the other, each in a process of its own."""
    parameters = {**vars(catalogue), "data": str(catalogue.data or ""), "level_sizes": list(catalogue.level_sizes)}
    state = RunState.open(out, {**parameters, "tokenisers": list(chosen)})
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for tokeniser in chosen:
            if tokeniser in state.results:
                continue
            task = bar.add_task(f"{tokeniser}: fit and assign", total=1)
            with guarded_process() as process:
                state.done(tokeniser, process.submit(measure, tokeniser, catalogue).result())
            bar.update(task, completed=1)
    state.finish()
    return {tokeniser: state.results[tokeniser] for tokeniser in chosen}


def short_number(count: int) -> str:
    """Return a number of ads as figures name it: 1000000 is 1m, 20000 is 20k."""
    for size, letter in ((10**6, "m"), (10**3, "k")):
        if count % size == 0:
            return f"{count // size}{letter}"
    return str(count)
