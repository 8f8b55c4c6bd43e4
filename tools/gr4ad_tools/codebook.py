"""Codebooks: fit one to the ads of a data folder, make it the active one, list them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import grpc
import typer
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_core.learning.data_folder import DataFolderError
from gr4ad_core.learning.embedding import EncoderFolderError
from gr4ad_core.sid.business_code import SIGNAL_VALUES
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.errors import Gr4adError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gr4ad_tools import train
from gr4ad_tools.call_error import describe, leave
from gr4ad_tools.codebook_fit import ARTIFACT_FOLDER, FitOptions, fit_codebook_from_folder

LIST_TIMEOUT_S = 30.0
REFIT_ABOVE = {"error_ratio": 1.25, "far_share": 0.05, "spilled_share": 0.05, "fullest_prefix": 0.9}
"""Rules of thumb: a quarter more is left over than at the fit, five times as many ads lie far off, one in twenty is
away from its nearest prefix, or a prefix is all but full."""
ACTIVATE_TIMEOUT_S = 600.0  # every known ad gets a SID within the call
DEFAULT_ADDRESS = "127.0.0.1:50051"
ADDRESS_VARIABLE = "GR4AD_SID_ASSIGNER_ADDRESS"
app = typer.Typer(no_args_is_help=True)


async def activate_codebook(sid_assigner_address: str, codebook_id: str) -> sid_pb2.Codebook:
    """Make a published codebook the active one; every known ad gets a SID under it first.

    Raises:
        grpc.aio.AioRpcError: The SID assigner refused it.
    """
    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        request = sid_pb2.ActivateCodebookRequest(codebook_id=codebook_id)
        return (await stub.ActivateCodebook(request, timeout=ACTIVATE_TIMEOUT_S)).codebook


async def register_codebook(sid_assigner_address: str, codebook_id: str) -> sid_pb2.Codebook:
    """Give every known ad a SID under a published codebook, beside the active one.

    Raises:
        grpc.aio.AioRpcError: The SID assigner refused it.
    """
    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        request = sid_pb2.RegisterCodebookRequest(codebook_id=codebook_id)
        return (await stub.RegisterCodebook(request, timeout=ACTIVATE_TIMEOUT_S)).codebook


async def retire_codebook(sid_assigner_address: str, codebook_id: str) -> sid_pb2.Codebook:
    """Give no further ad a SID under a codebook.

    Raises:
        grpc.aio.AioRpcError: The SID assigner refused it.
    """
    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        request = sid_pb2.RetireCodebookRequest(codebook_id=codebook_id)
        return (await stub.RetireCodebook(request, timeout=LIST_TIMEOUT_S)).codebook


async def codebook_drift(sid_assigner_address: str, codebook_id: str, sample: int) -> sid_pb2.GetCodebookDriftResponse:
    """Return how the newest ads fit a codebook, the active one where the id is empty.

    Raises:
        grpc.aio.AioRpcError: The SID assigner refused.
    """
    async with open_channel(sid_assigner_address) as channel:
        stub = sid_pb2_grpc.SidServiceStub(channel)
        request = sid_pb2.GetCodebookDriftRequest(codebook_id=codebook_id, sample_size=sample)
        return await stub.GetCodebookDrift(request, timeout=LIST_TIMEOUT_S)


async def channels_on(rspo_trainer_address: str, codebook_id: str) -> list[str]:
    """Return the channels whose current policy writes a codebook's SIDs.

    Raises:
        grpc.aio.AioRpcError: The trainer did not answer.
    """
    # A channel's current policy may be older than any number of another one's.
    return sorted(
        [
            channel
            async for policy in train.all_policies(rspo_trainer_address)
            if policy.policy.codebook_id == codebook_id
            for channel in policy.channels
        ]
    )


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
    business_signals: Annotated[
        list[str] | None,
        typer.Option(
            "--business-signal",
            help=f"In the high bits of business codes: {' or '.join(SIGNAL_VALUES)}. The first if left out.",
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Hugging Face folder of an encoder; the built-in one if left out.",
        ),
    ] = None,
    content_only: Annotated[
        bool, typer.Option("--content-only", help="Leave out which ads users choose together.")
    ] = False,
    holdout: Annotated[
        int, typer.Option(min=0, help="Last events of every user to learn nothing from; 2 to measure on them later.")
    ] = 0,
    work: Annotated[Path, typer.Option(help="Folder of finished steps, until all are.")] = Path("out/codebook-fit"),
) -> None:
    """Fit a codebook to the ads of a data folder and publish it; an interrupted fit goes on where it was."""
    options = FitOptions(
        seed=seed,
        level_sizes=_sizes(level_sizes),
        business_signals=tuple(business_signals or FitOptions.business_signals),
        encoder=encoder,
        content_only=content_only,
        holdout_events=holdout,
    )
    columns = (TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("read", total=1.0)
        try:
            fitted = fit_codebook_from_folder(
                data_dir, artifacts, codebook_id, options, work,
                lambda step, share: bar.update(task, description=step, completed=share),
            )  # fmt: skip
        except (ValueError, DataFolderError, EncoderFolderError, Gr4adError) as error:
            leave(str(error))
        except KeyboardInterrupt:
            leave(f"interrupted: the same command goes on where it was; what there is lies in {work}", code=130)
    learned = f"content and {fitted.pairs} pairs of ads chosen together" if fitted.pairs else "content alone"
    typer.echo(f"published {ARTIFACT_FOLDER}/{codebook_id} in {artifacts}: {fitted.ads} ads, {learned}")


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


@app.command()
def register(
    codebook_id: Annotated[str, typer.Argument(metavar="ID", help="A codebook of the artifact store.")],
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
) -> None:
    """Give every ad a SID under a published codebook, beside the active one; run it again to resume."""
    try:
        codebook = asyncio.run(register_codebook(address, codebook_id))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    typer.echo(f"{codebook.codebook_id} is {_state(codebook)}, {_shown(codebook)} codes")


@app.command()
def retire(
    codebook_id: Annotated[str, typer.Argument(metavar="ID", help="A registered codebook, not the active one.")],
    force: Annotated[bool, typer.Option("--force", help="Retire it though a channel's policy still needs it.")] = False,
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
    trainer: Annotated[
        str, typer.Option(envvar=train.ADDRESS_VARIABLE, help="Address of the trainer.")
    ] = train.DEFAULT_ADDRESS,
) -> None:
    """Give no further ad a SID under a codebook; generators whose policy needs it hear of no further change."""
    try:
        needed = [] if force else asyncio.run(channels_on(trainer, codebook_id))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, trainer))
    if needed:
        leave(f"{codebook_id}: the current policies of {', '.join(needed)} need it: activate others, or give --force")
    try:
        codebook = asyncio.run(retire_codebook(address, codebook_id))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    typer.echo(f"{codebook.codebook_id} is {_state(codebook)}")


@app.command()
def drift(
    codebook_id: Annotated[str, typer.Argument(metavar="[ID]", help="The codebook; the active one if left out.")] = "",
    sample: Annotated[int, typer.Option(min=1, max=10000, help="Newest ads to look at.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the SID assigner.")
    ] = DEFAULT_ADDRESS,
) -> None:
    """Tell how the newest ads fit a codebook, and whether it is time for another."""
    try:
        found = asyncio.run(codebook_drift(address, codebook_id, sample))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    values = {
        field: getattr(found, field) if found.HasField(field) else None  # type: ignore[arg-type]
        for field in REFIT_ABOVE
    }
    reached = [field for field, value in values.items() if value is not None and value > REFIT_ABOVE[field]]
    if as_json:
        shown = {"codebook_id": found.codebook_id, "ads": found.ads, **values, "refit_for": reached}
        print(json.dumps(shown, indent=2))
        return
    table = Table("figure", "value", "refit above")
    for field, value in values.items():
        table.add_row(field, "unknown" if value is None else f"{value:.3f}", f"{REFIT_ABOVE[field]:g}")
    Console().print(table)
    unknown = [field for field, value in values.items() if value is None]
    advice = f"refit: {', '.join(reached)}" if reached else "no need to refit"
    if unknown:
        advice += f"; unknown: {', '.join(unknown)}"
    typer.echo(f"{found.codebook_id}, the newest {found.ads} ads: {advice}")


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
            _state(codebook),
            codebook.create_time.ToJsonString(),
            codebook.sha256[:12],
        )
    Console().print(table)


def _state(codebook: sid_pb2.Codebook) -> str:
    return sid_pb2.CodebookState.Name(codebook.state).removeprefix("CODEBOOK_STATE_").lower()


def _shown(codebook: sid_pb2.Codebook) -> str:
    return ",".join(str(size) for size in codebook.level_sizes)


def _sizes(text: str) -> tuple[int, ...] | None:
    try:
        return parse_sizes(text)
    except ValueError as error:
        leave(str(error))


def parse_sizes(text: str) -> tuple[int, ...] | None:
    """Return the level sizes that a text of numbers with commas gives; None where it is empty.

    Raises:
        ValueError: It is no such text.
    """
    try:
        return tuple(int(size) for size in text.split(",")) if text else None
    except ValueError:
        raise ValueError(f"level_sizes: {text}: give whole numbers with commas, such as 1024,256,64") from None
