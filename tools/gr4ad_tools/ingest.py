"""Ads of a data folder into the SID assigner, and look-ups of what became of them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import DataFolderError, Item, read_items
from gr4ad_core.learning.embedding import EncoderFolderError, HuggingFaceEncoder
from gr4ad_core.sid.ad_content import render
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.channels import open_channel
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gr4ad_tools.call_error import describe, leave
from gr4ad_tools.codebook_fit import content_of

MAX_BATCH = 1000  # the contract's limit
CALL_TIMEOUT_S = 120.0
OUTAGE_S = 30.0
"""How long a batch is sent again before the command gives up."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
BUSY = "queue:"
"""How a refusal begins that another attempt may not meet."""
DEFAULT_ADDRESS = "127.0.0.1:50051"
ADDRESS_VARIABLE = "GR4AD_SID_ASSIGNER_ADDRESS"

sid_app = typer.Typer(help="Look up ads and their semantic IDs.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What an ingestion did.

    Attributes:
        ads: Ads of the folder, each with a SID now.
        seconds: Time it took.
        cursor: A reader of the catalogue at or past this cursor knows all of them.
    """

    ads: int
    seconds: float
    cursor: int


async def ingest_folder(
    data_dir: Path | str,
    sid_assigner_address: str,
    batch_size: int = 500,
    concurrency: int = 2,
    progress: Callable[[int, int], None] | None = None,
    encoder: Path | None = None,
) -> IngestResult:
    """Create every ad of a data folder.

    A batch's request id is a digest of its ads, so a run that was cut off is resumed by running it again: batches that
    were created before answer at once and change nothing. With a concurrency of 1 the ads arrive in file order, and the
    SIDs of a store that was empty are the same every time.

    Args:
        data_dir: Folder with `items.jsonl[.gz]`.
        sid_assigner_address: Address of the SID assigner.
        batch_size: Ads in a call, 1 to 1000.
        concurrency: Calls under way at a time.
        progress: Called with the ads created so far and the ads of the folder, after each batch.
        encoder: Hugging Face folder of the encoder that the codebook was fitted with; its vectors are sent along.

    Raises:
        DataFolderError: The folder cannot be used.
        EncoderFolderError: The encoder's folder cannot be used.
        grpc.aio.AioRpcError: The SID assigner refused a batch; batches before it stay.
    """
    if not 1 <= batch_size <= MAX_BATCH:
        raise ValueError(f"batch_size: {batch_size}: choose 1 to {MAX_BATCH}")
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency}: choose 1 or more")
    started = time.perf_counter()
    items = await asyncio.to_thread(read_items, Path(data_dir))
    vectors_ND = None if encoder is None else await asyncio.to_thread(_encoded, encoder, items)
    requests = batches(items, batch_size, vectors_ND)
    created = cursor = 0

    async def send(stub: sid_pb2_grpc.SidServiceAsyncStub) -> None:
        nonlocal created, cursor
        for request in requests:  # shared by the senders: each takes the next batch
            response = await _create(stub, request, answered=created > 0)
            created += len(response.ad_sids)
            cursor = max(cursor, response.catalog_cursor)
            if progress is not None:
                progress(created, len(items))

    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        senders = [asyncio.ensure_future(send(stub)) for _ in range(concurrency)]
        try:
            await asyncio.gather(*senders)
        finally:
            for sender in senders:
                sender.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
    return IngestResult(ads=created, seconds=time.perf_counter() - started, cursor=cursor)


async def _create(
    stub: sid_pb2_grpc.SidServiceAsyncStub, request: sid_pb2.BatchCreateAdSidsRequest, *, answered: bool
) -> sid_pb2.BatchCreateAdSidsResponse:
    """Send a batch; again for a while where the server has too much to do, or is away after it has `answered`."""
    give_up, wait_s = time.monotonic() + OUTAGE_S, FIRST_WAIT_S
    while True:
        try:
            return await stub.BatchCreateAdSids(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            busy = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and (error.details() or "").startswith(BUSY)
            away = answered and error.code() is grpc.StatusCode.UNAVAILABLE
            if not (busy or away) or time.monotonic() + wait_s > give_up:
                raise
        await back_off(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _encoded(encoder: Path, items: Sequence[Item]) -> NDArray[np.float32]:
    return HuggingFaceEncoder(encoder).encode([render(content_of(item)) for item in items])


def batches(
    items: Sequence[Item], batch_size: int, vectors_ND: NDArray[np.float32] | None = None
) -> Iterator[sid_pb2.BatchCreateAdSidsRequest]:
    """Yield requests that create items, `batch_size` each; a request's id is a digest of its ads."""
    for start in range(0, len(items), batch_size):
        ads = [to_ad(item) for item in items[start : start + batch_size]]
        if vectors_ND is not None:
            for ad, vector_D in zip(ads, vectors_ND[start : start + batch_size].tolist(), strict=True):
                ad.embedding.extend(vector_D)
        request = sid_pb2.BatchCreateAdSidsRequest(ads=ads)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        request.request_id = f"ingest-{digest[:40]}"
        yield request


def to_ad(item: Item) -> sid_pb2.Ad:
    """Return an item as the ad that the SID assigner takes."""
    return sid_pb2.Ad(
        ad_id=item.item_id,
        title=item.title,
        brand=item.brand,
        categories=item.categories,
        description=item.description,
        advertiser_id=item.advertiser_id,
        ad_type=sid_pb2.AdType.Value(f"AD_TYPE_{item.ad_type.upper()}"),
        conversion_type=sid_pb2.ConversionType.Value(f"CONVERSION_TYPE_{item.conversion_type.upper()}"),
        bid_micros=item.bid_micros,
        state=sid_pb2.AdState.Value(f"AD_STATE_{item.state.upper()}"),
    )


async def look_up(
    sid_assigner_address: str, *, ad_id: str = "", codes: Sequence[int] = (), codebook_id: str = ""
) -> sid_pb2.AdSid:
    """Return an ad by its id, or by its SID where `codes` are given.

    Raises:
        grpc.aio.AioRpcError: There is none.
    """
    request = sid_pb2.GetAdSidRequest(codebook_id=codebook_id)
    if codes:
        request.sid.CopyFrom(type_pb2.SemanticId(codes=codes))
    else:
        request.ad_id = ad_id
    async with open_channel(sid_assigner_address) as channel:
        response = await sid_pb2_grpc.SidServiceStub(channel).GetAdSid(request, timeout=CALL_TIMEOUT_S)
    return response.ad_sid


async def look_up_all(
    sid_assigner_address: str, ad_ids: Sequence[str], *, codebook_id: str = ""
) -> list[sid_pb2.AdSid]:
    """Return ads by their ids, in their order; at most 1000.

    Raises:
        grpc.aio.AioRpcError: One of them does not exist.
    """
    request = sid_pb2.BatchGetAdSidsRequest(ad_ids=ad_ids, codebook_id=codebook_id)
    async with open_channel(sid_assigner_address) as channel:
        response = await sid_pb2_grpc.SidServiceStub(channel).BatchGetAdSids(request, timeout=CALL_TIMEOUT_S)
    return list(response.ad_sids)


async def list_ads(
    sid_assigner_address: str, *, advertiser_id: str = "", state: int = 0, codebook_id: str = "", limit: int
) -> list[sid_pb2.AdSid]:
    """Return ads by their ids, `limit` at most.

    Raises:
        grpc.aio.AioRpcError: The SID assigner refused.
    """
    found: list[sid_pb2.AdSid] = []
    request = sid_pb2.ListAdSidsRequest(
        advertiser_id=advertiser_id,
        state=sid_pb2.AdState.ValueType(state),
        codebook_id=codebook_id,
    )
    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        while len(found) < limit:
            request.page_size = min(MAX_BATCH, limit - len(found))
            page = await stub.ListAdSids(request, timeout=CALL_TIMEOUT_S)
            found += page.ad_sids
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    return found


def ingest_command(
    data_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder with items.jsonl[.gz].")],
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
    batch_size: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Ads in a call.")] = 500,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Calls under way at a time.")] = 2,
    encoder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Hugging Face folder that the codebook was fitted with."),
    ] = None,
) -> None:
    """Create every ad of a data folder; run it again to resume."""
    columns = (TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("ingest", total=None)

        def show(created: int, total: int) -> None:
            bar.update(task, completed=created, total=total)

        try:
            result = asyncio.run(ingest_folder(data_dir, address, batch_size, concurrency, show, encoder))
        except (DataFolderError, EncoderFolderError) as error:
            leave(str(error))
        except grpc.aio.AioRpcError as error:
            leave(describe(error, address))
    rate = result.ads / max(result.seconds, 1e-9)
    typer.echo(f"{result.ads} ads in {result.seconds:.1f} s ({rate:.0f}/s), catalogue cursor {result.cursor}")


@sid_app.command("get")
def sid_get(
    ad_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[AD_ID]...", help="The ads; leave them out to look up by --sid.")
    ] = None,
    sid: Annotated[str, typer.Option(help="A SID, as codes with commas: 12,7,301.")] = "",
    codebook: Annotated[str, typer.Option(help="Codebook of the SID; the active one by default.")] = "",
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
) -> None:
    """Show ads and their SIDs, by either of them."""
    if bool(ad_ids) == bool(sid):
        leave("ad_id, --sid: both or none: give one of them")
    try:
        if ad_ids:
            found = asyncio.run(look_up_all(address, ad_ids, codebook_id=codebook))
        else:
            codes = [int(code) for code in sid.split(",")]
            found = [asyncio.run(look_up(address, codes=codes, codebook_id=codebook))]
    except ValueError:
        leave(f"--sid: {sid}: give whole numbers with commas, such as 12,7,301")
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    for ad in found:
        _show(ad)


class State(StrEnum):
    """Whether an ad may be shown, as commands name it."""

    ACTIVE = "active"
    PAUSED = "paused"


@sid_app.command("list")
def sid_list(
    advertiser: Annotated[str, typer.Option(help="Account that pays; all by default.")] = "",
    state: Annotated[State | None, typer.Option(help="State; both by default.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    codebook: Annotated[str, typer.Option(help="Codebook of the SIDs; the active one by default.")] = "",
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
) -> None:
    """List ads by their ids: all, or those of an account or in a state."""
    number = 0 if state is None else sid_pb2.AdState.Value(f"AD_STATE_{state.upper()}")
    try:
        found = asyncio.run(
            list_ads(address, advertiser_id=advertiser, state=number, codebook_id=codebook, limit=limit)
        )
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    for ad in found:
        codes = ",".join(str(code) for code in ad.sid.codes)
        shown_state = sid_pb2.AdState.Name(ad.state).removeprefix("AD_STATE_").lower()
        typer.echo(f"{ad.ad_id:<24}{codes:<20}{shown_state:<8}{ad.bid_micros:>12}  {ad.advertiser_id}")


def _show(ad: sid_pb2.AdSid) -> None:
    shown = {
        "ad": ad.ad_id,
        "sid": ",".join(str(code) for code in ad.sid.codes),
        "codebook": ad.codebook_id,
        "advertiser": ad.advertiser_id,
        "conversion": sid_pb2.ConversionType.Name(ad.conversion_type).removeprefix("CONVERSION_TYPE_").lower(),
        "bid_micros": ad.bid_micros,
        "state": sid_pb2.AdState.Name(ad.state).removeprefix("AD_STATE_").lower(),
        "created": ad.create_time.ToJsonString(),
        "updated": ad.update_time.ToJsonString(),
    }
    for name, value in shown.items():
        typer.echo(f"{name:<11}{value}")
