"""`gr4ad bench ingest`: how many ads a second concurrent writers create, durably, and whether what was told is true.

SID assigners and an embedded PostgreSQL that survives a power failure share the machine with the writers. The ads
are those of the simulated market, each in several campaigns with texts of their own.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_core.learning.data_folder import ITEMS_FILE, Item, read_items
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.errors import Gr4adError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gr4ad_tools import figures
from gr4ad_tools.call_error import describe, leave
from gr4ad_tools.codebook import activate_codebook
from gr4ad_tools.codebook_fit import FitOptions, fit_codebook_from_folder
from gr4ad_tools.figures import Figure
from gr4ad_tools.ingest import batches
from gr4ad_tools.measure import show_summary, write_summary
from gr4ad_tools.simulate import Market
from gr4ad_tools.suite_processes import PROCESSES
from gr4ad_tools.up import Suite

SERVICE: Final = "sid_assigner"
CODEBOOK_ID: Final = "bench"
SCENARIO = "steady"
FITTED: Final = 12_000
"""Ads that the codebook is fitted to: the others come later, as in a system that runs."""
CALL_TIMEOUT_S: Final = 60.0


class WrongAnswerError(Exception):
    """What the catalogue holds is not what the writers were told."""


@dataclass
class Written:
    """What the writers were told.

    Attributes:
        sids: Codes by ad.
        batch_ms: How long each call took.
        seconds: From the first call to the last answer.
    """

    sids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    batch_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0


def campaigns(items: Sequence[Item], count: int) -> list[Item]:
    """Return ads: each item once, then each once more in a further campaign of another account, and so on."""
    return [
        replace(
            item,
            item_id=f"{item.item_id}-{campaign}",
            title=f"{item.title} {campaign}",
            advertiser_id=f"{item.advertiser_id}-{campaign % 3}",
        )
        for number in range(count)
        for campaign, item in [(number // len(items), items[number % len(items)])]
    ]


def first_campaign(item_id: str) -> str:
    """Return the id that `campaigns` gives to the first ad of an item."""
    return f"{item_id}-0"


async def write(
    addresses: Sequence[str], items: Sequence[Item], writers: int, batch_size: int, bar: Progress
) -> Written:
    """Create ads by as many writers at a time, each on a connection of its own, the servers in turn."""
    written = Written()
    task = bar.add_task("create", total=len(items))
    requests = batches(items, batch_size)

    async def writer(address: str) -> None:
        async with open_channel(address) as channel:
            stub = sid_pb2_grpc.SidServiceStub(channel)
            for request in requests:  # shared by the writers: each takes the next batch
                sent = time.perf_counter()
                response = await stub.BatchCreateAdSids(request, timeout=CALL_TIMEOUT_S)
                written.batch_ms.append(1e3 * (time.perf_counter() - sent))
                for ad_sid in response.ad_sids:
                    written.sids[ad_sid.ad_id] = tuple(ad_sid.sid.codes)
                bar.update(task, completed=len(written.sids))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(writers):
            tasks.create_task(writer(addresses[number % len(addresses)]))
    written.seconds = time.perf_counter() - started
    return written


async def check(address: str, written: Written) -> None:
    """Hold what the writers were told against the catalogue.

    Raises:
        WrongAnswerError: An ad is missing, has another SID, or shares one.
    """
    stored: dict[str, tuple[int, ...]] = {}
    async with open_channel(address) as channel:
        async for part in sid_pb2_grpc.SidServiceStub(channel).ReadCatalog(
            sid_pb2.ReadCatalogRequest(until_current=True)
        ):
            stored.update((entry.ad_id, tuple(entry.sid.codes)) for entry in part.entries)
    if stored != written.sids:
        raise WrongAnswerError(f"{len(written.sids)} ads were told, {len(stored)} stored, not all the same")
    if len(set(stored.values())) != len(stored):
        raise WrongAnswerError(f"{len(stored)} ads have {len(set(stored.values()))} SIDs")


async def measure(
    folder: Path, ads: int, writers: int, replicas: int, batch_size: int, seed: int, bar: Progress
) -> dict[str, Figure]:
    """Run SID assigners on an empty database in `folder`, and let writers create ads."""
    task = bar.add_task("fit a codebook, start", total=1)
    Market(SCENARIO, seed).write_folder(folder / "market")
    items = campaigns(read_items(folder / "market"), ads)
    (folder / "ads").mkdir()
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in items[:FITTED])
    (folder / "ads" / ITEMS_FILE).write_text(lines, encoding="utf-8")
    commands = {f"{SERVICE}_{number}": PROCESSES[SERVICE].command() for number in range(replicas)}
    async with Suite(folder / "suite", commands=commands, env={"GR4AD_LOG_LEVEL": "ERROR"}) as suite:
        options = FitOptions(seed=seed)
        await asyncio.to_thread(fit_codebook_from_folder, folder / "ads", suite.artifact_store, CODEBOOK_ID, options)
        addresses = list(suite.addresses.values())
        for name in commands:
            await suite.wait_ready(name)
        await activate_codebook(addresses[0], CODEBOOK_ID)
        bar.update(task, completed=1)
        written = await write(addresses, items, writers, batch_size, bar)
        await check(addresses[0], written)
    return {
        "ingest_ads_per_s": Figure(len(written.sids) / written.seconds, "ads/s", len(written.sids)),
        "ingest_seconds": Figure(written.seconds, "s"),
        "ingest_batch_ms_p50": figures.percentile(written.batch_ms, 50, "ms"),
        "ingest_batch_ms_p99": figures.percentile(written.batch_ms, 99, "ms"),
        "ingest_batch_size": Figure(batch_size, "ads"),
        "ingest_writers": Figure(writers, "writers"),
        "ingest_replicas": Figure(replicas, "servers"),
    }


def ingest_command(
    ads: Annotated[int, typer.Option(min=1, help="Ads to create.")] = 60_000,
    writers: Annotated[int, typer.Option(min=1, max=64, help="Writers at a time.")] = 8,
    replicas: Annotated[int, typer.Option(min=1, max=8, help="SID assigners on the one database.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, max=1000, help="Ads in a call.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the market.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/bench-ingest"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Time concurrent writers of ads on SID assigners with a durable PostgreSQL, and check what they were told."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar, tempfile.TemporaryDirectory() as scratch:
            found = asyncio.run(measure(Path(scratch), ads, writers, replicas, batch_size, seed, bar))
    except* grpc.aio.AioRpcError as errors:
        leave(describe(errors.exceptions[0], SERVICE))  # type: ignore[arg-type]
    except* (Gr4adError, WrongAnswerError) as errors:
        leave(str(errors.exceptions[0]))
    document = write_summary(found, seed, out)
    show_summary(document, found, out, as_json)
