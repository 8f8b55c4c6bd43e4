"""Codebooks: fit one to the ads of a data folder, make it the active one, list them."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import grpc
import typer
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_core.learning.data_folder import DataFolderError, Item, read_items
from gr4ad_core.sid.ad_content import AdContent, render
from gr4ad_core.sid.codebook import Codebook, CodebookConfig, default_level_sizes, fit_codebook, save_codebook
from gr4ad_core.sid.text_encoder import TextEncoder
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.errors import Gr4adError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gr4ad_tools.call_error import describe, leave

ARTIFACT_FOLDER = "codebooks"
# On Amazon Beauty, with unscaled directions, users' next ads share a first code in 5.4 % of pairs, with 128 in 4.5 %.
EMBEDDING_DIM = 256
LIST_TIMEOUT_S = 30.0
ACTIVATE_TIMEOUT_S = 600.0  # every known ad gets a SID within the call
DEFAULT_ADDRESS = "127.0.0.1:50051"
ADDRESS_VARIABLE = "GR4AD_SID_ASSIGNER_ADDRESS"
CODEBOOK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # the contract's rule

OnProgress = Callable[[str, float], None]

app = typer.Typer(no_args_is_help=True)


def fit_codebook_from_folder(
    data_dir: Path | str,
    artifact_store_url: str,
    codebook_id: str,
    seed: int,
    level_sizes: tuple[int, ...] | None = None,
    progress: OnProgress | None = None,
) -> str:
    """Fit a text encoder and a codebook to the ads of a data folder and publish them; return the codebook's id.

    The same folder, seed and sizes give the same bytes, so that a repeated call changes nothing.

    Args:
        data_dir: Folder with `items.jsonl[.gz]`.
        artifact_store_url: Folder or fsspec URL; the codebook is published as `codebooks/<codebook_id>`.
        codebook_id: Letters, digits, dots, dashes and underscores.
        seed: Of the encoder and the codebook.
        level_sizes: Codes of every level, the business level last; by the number of ads if None.
        progress: Called with the name of the step under way and the share of the whole that is done.

    Raises:
        ValueError: The id or a size is unusable.
        DataFolderError: The folder cannot be used.
        Gr4adError: The artifact store holds another codebook of this id, or cannot be written.
    """
    if not CODEBOOK_ID.fullmatch(codebook_id):
        remedy = "use 1 to 128 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise ValueError(f"codebook_id: {codebook_id!r}: {remedy}")
    report = progress or (lambda step, share: None)
    report("read", 0.0)
    items = read_items(data_dir)
    config = CodebookConfig(
        level_sizes=level_sizes or default_level_sizes(len(items)), embedding_dim=EMBEDDING_DIM, seed=seed
    )
    codebook = _fit(items, config, codebook_id, report)
    report("publish", 0.95)
    with tempfile.TemporaryDirectory(prefix="gr4ad-codebook-") as scratch:
        folder = Path(scratch) / codebook_id
        save_codebook(codebook, folder)
        ArtifactStore(artifact_store_url).publish_folder(folder, f"{ARTIFACT_FOLDER}/{codebook_id}")
    report("publish", 1.0)
    return codebook_id


def _fit(items: Sequence[Item], config: CodebookConfig, codebook_id: str, report: OnProgress) -> Codebook:
    texts = [render(content_of(item)) for item in items]
    report("encode", 0.05)
    encoder = TextEncoder.fit(texts, config.embedding_dim, config.seed)
    vectors_ND = encoder.encode(texts)
    report("cluster", 0.5)
    return fit_codebook(vectors_ND, config, encoder, codebook_id)


def content_of(item: Item) -> AdContent:
    """Return what the text encoder reads of an item."""
    return AdContent(item.title, item.brand, item.categories, item.description, item.advertiser_id, item.ad_type)


async def activate_codebook(sid_assigner_address: str, codebook_id: str) -> sid_pb2.Codebook:
    """Make a published codebook the active one; every known ad gets a SID under it first.

    Raises:
        grpc.aio.AioRpcError: The SID assigner refused it.
    """
    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        request = sid_pb2.ActivateCodebookRequest(codebook_id=codebook_id)
        return (await stub.ActivateCodebook(request, timeout=ACTIVATE_TIMEOUT_S)).codebook


async def list_codebooks(sid_assigner_address: str) -> list[sid_pb2.Codebook]:
    """Return the registered codebooks, the newest first.

    Raises:
        grpc.aio.AioRpcError: The SID assigner did not answer.
    """
    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        return list((await stub.ListCodebooks(sid_pb2.ListCodebooksRequest(), timeout=LIST_TIMEOUT_S)).codebooks)


@app.command()
def fit(
    data_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Data folder with items.jsonl[.gz].")],
    artifacts: Annotated[
        str, typer.Option(envvar="GR4AD_ARTIFACT_STORE", help="Artifact store: a folder or fsspec URL.")
    ] = "./out/artifacts",
    codebook_id: Annotated[str, typer.Option("--id", help="Name to publish the codebook under.")] = "codebook",
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    level_sizes: Annotated[
        str, typer.Option(help="Codes of every level, the business level last: 1024,256,64. By the ads if left out.")
    ] = "",
) -> None:
    """Fit a codebook to the ads of a data folder and publish it."""
    columns = (TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("read", total=1.0)
        try:
            fit_codebook_from_folder(
                data_dir, artifacts, codebook_id, seed, parse_sizes(level_sizes),
                lambda step, share: bar.update(task, description=step, completed=share),
            )  # fmt: skip
        except (ValueError, DataFolderError, Gr4adError) as error:
            leave(str(error))
    typer.echo(f"published {ARTIFACT_FOLDER}/{codebook_id} in {artifacts}")


@app.command()
def activate(
    codebook_id: Annotated[str, typer.Argument(metavar="ID", help="A codebook of the artifact store.")],
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
) -> None:
    """Make a published codebook the active one."""
    try:
        codebook = asyncio.run(activate_codebook(address, codebook_id))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    typer.echo(f"{codebook.codebook_id} is active, {_shown(codebook)} codes")


@app.command("list")
def list_command(
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
) -> None:
    """List the registered codebooks, the newest first."""
    try:
        codebooks = asyncio.run(list_codebooks(address))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    table = Table("codebook", "codes", "vector", "state", "registered", "sha256")
    for codebook in codebooks:
        table.add_row(
            codebook.codebook_id,
            _shown(codebook),
            str(codebook.embedding_dim),
            sid_pb2.CodebookState.Name(codebook.state).removeprefix("CODEBOOK_STATE_").lower(),
            codebook.create_time.ToJsonString(),
            codebook.sha256[:12],
        )
    Console().print(table)


def _shown(codebook: sid_pb2.Codebook) -> str:
    return ",".join(str(size) for size in codebook.level_sizes)


def parse_sizes(text: str) -> tuple[int, ...] | None:
    """Return the level sizes that a text of numbers with commas gives; None where it is empty.

    Raises:
        ValueError: It is no such text.
    """
    try:
        return tuple(int(size) for size in text.split(",")) if text else None
    except ValueError:
        raise ValueError(f"level_sizes: {text}: give whole numbers with commas, such as 1024,256,64") from None
