"""Training runs: started, watched to their end, cancelled by Ctrl-C; and the policies they publish."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.channels import open_channel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gr4ad_tools.call_error import describe, leave

T = TypeVar("T")

DEFAULT_ADDRESS = "127.0.0.1:50054"
ADDRESS_VARIABLE = "GR4AD_RSPO_TRAINER_ADDRESS"
CALL_TIMEOUT_S = 10.0
POLL_S = 0.5
POLICIES_A_PAGE = 1000
OUTAGE_S = 120.0
"""How long a trainer that is away may take to come back: a supervisor restarts it within seconds."""
AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
ENDED = frozenset(
    {
        training_pb2.TRAINING_RUN_STATE_SUCCEEDED,
        training_pb2.TRAINING_RUN_STATE_FAILED,
        training_pb2.TRAINING_RUN_STATE_CANCELLED,
    }
)


class Preference(StrEnum):
    """What moves a policy towards the order by reward, as commands name it."""

    RSPO = "rspo"
    DPO = "dpo"

    @property
    def message(self) -> training_pb2.Preference.ValueType:
        """The same as the contract names it."""
        return training_pb2.Preference.Value(f"PREFERENCE_{self.name}")


policy_app = typer.Typer(help="List published policies, activate them, and roll back.", no_args_is_help=True)


class TrainingRunError(Exception):
    """A training run ended without a policy.

    Attributes:
        run: The run.
    """

    def __init__(self, run: training_pb2.TrainingRun) -> None:
        """Say how it ended."""
        state = state_name(run)
        super().__init__(f"training run {run.run_id} {state}" + (f": {run.error}" if run.error else ""))
        self.run = run


def state_name(run: training_pb2.TrainingRun) -> str:
    """Return the state of a run in lower case."""
    return training_pb2.TrainingRunState.Name(run.state).removeprefix("TRAINING_RUN_STATE_").lower()


async def train_and_wait(
    address: str,
    *,
    data_folder: training_pb2.DataFolderSource | None = None,
    reward_log: training_pb2.RewardLogSource | None = None,
    online: training_pb2.OnlineSource | None = None,
    preset: str = "",
    epochs: int = 0,
    seed: int = 0,
    channel: str = "",
    codebook_id: str = "",
    request_id: str = "",
    progress: Callable[[training_pb2.TrainingRun], None] = lambda run: None,
    away: Callable[[str], None] = lambda reason: None,
    outage_s: float = OUTAGE_S,
) -> training_pb2.TrainingRun:
    """Start a training run and wait for its end; cancelling the call cancels the run.

    A trainer that restarts meanwhile is waited for: it takes the run up again.

    Args:
        address: Of the trainer.
        data_folder: Train from a data folder, or
        reward_log: train from the reward log, or
        online: learn from the reward log as it grows, until the run is cancelled. Exactly one of them.
        preset: Named configuration; empty for the default one.
        epochs: Passes over the data; 0 for the preset's.
        seed: Of every random choice.
        channel: Channel to publish to; empty for none.
        codebook_id: Codebook of the SIDs; empty for the active one.
        request_id: Of the request; a known one joins the run that it started. Empty for a new run.
        progress: Called with the run whenever it was looked at.
        away: Called with the reason whenever the trainer did not answer.
        outage_s: How long the trainer may be away at a time.

    Returns:
        The run, succeeded.

    Raises:
        TrainingRunError: The run failed or was cancelled.
        grpc.aio.AioRpcError: The trainer refused the run, or was away for too long.
    """
    request = training_pb2.CreateTrainingRunRequest(
        request_id=request_id or uuid.uuid4().hex,
        preset=preset,
        epochs=epochs,
        seed=seed,
        channel=channel,
        codebook_id=codebook_id,
    )
    if data_folder is not None:
        request.data_folder.CopyFrom(data_folder)
    if reward_log is not None:
        request.reward_log.CopyFrom(reward_log)
    if online is not None:
        request.online.CopyFrom(online)
    async with open_channel(address) as grpc_channel:
        stub = training_pb2_grpc.TrainingServiceStub(grpc_channel)
        run: training_pb2.TrainingRun | None = None
        try:
            created = await _patiently(lambda: stub.CreateTrainingRun(request, timeout=CALL_TIMEOUT_S), away, outage_s)
            run = created.training_run
            look = training_pb2.GetTrainingRunRequest(run_id=run.run_id)
            while run.state not in ENDED:
                progress(run)
                await asyncio.sleep(POLL_S)
                run = (
                    await _patiently(lambda: stub.GetTrainingRun(look, timeout=CALL_TIMEOUT_S), away, outage_s)
                ).training_run
        except asyncio.CancelledError:
            if run is not None:
                cancel = training_pb2.CancelTrainingRunRequest(run_id=run.run_id)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.CancelTrainingRun(cancel, timeout=CALL_TIMEOUT_S)
            raise
    progress(run)
    if run.state != training_pb2.TRAINING_RUN_STATE_SUCCEEDED:
        raise TrainingRunError(run)
    return run


async def _patiently(call: Callable[[], Awaitable[T]], away: Callable[[str], None], outage_s: float) -> T:
    give_up = time.monotonic() + outage_s
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY or time.monotonic() >= give_up:
                raise
            away(error.details() or error.code().name)
        await back_off(POLL_S)


async def current_policy(address: str, policy_channel: str) -> str:
    """Return the id of a channel's current policy, however old; empty where it has none."""
    async with contextlib.aclosing(all_policies(address)) as policies:
        async for policy in policies:
            if policy_channel in policy.channels:
                return str(policy.policy.policy_id)
    return ""


async def all_policies(address: str) -> AsyncGenerator[training_pb2.Policy, None]:
    """Yield every policy, the newest first.

    Raises:
        grpc.aio.AioRpcError: The trainer did not answer.
    """
    request = training_pb2.ListPoliciesRequest(page_size=POLICIES_A_PAGE)
    async with open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        while True:
            page = await stub.ListPolicies(request, timeout=CALL_TIMEOUT_S)
            for policy in page.policies:
                yield policy
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


async def list_runs(address: str, limit: int) -> list[training_pb2.TrainingRun]:
    """Return the latest runs, the newest first."""
    async with open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.ListTrainingRunsRequest(page_size=limit)
        return list((await stub.ListTrainingRuns(request, timeout=CALL_TIMEOUT_S)).training_runs)


async def list_policies(address: str, limit: int) -> list[training_pb2.Policy]:
    """Return the latest policies, the newest first."""
    async with open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.ListPoliciesRequest(page_size=limit)
        return list((await stub.ListPolicies(request, timeout=CALL_TIMEOUT_S)).policies)


async def activate_policy(address: str, policy_id: str, policy_channel: str) -> training_pb2.Policy:
    """Make a policy the current one of a channel.

    Raises:
        grpc.aio.AioRpcError: There is no such policy, or the trainer is away.
    """
    async with open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.ActivatePolicyRequest(policy_id=policy_id, channel=policy_channel)
        return (await stub.ActivatePolicy(request, timeout=CALL_TIMEOUT_S)).policy


async def roll_back_policy(address: str, policy_id: str, policy_channel: str) -> training_pb2.Policy:
    """Make the policy current again that was so before a channel's current one; wait for a trainer that is away.

    Args:
        address: Of the trainer.
        policy_id: The policy to roll back. It is stated, so that an attempt whose answer was lost does not count twice.
        policy_channel: The channel.

    Raises:
        grpc.aio.AioRpcError: There is no earlier policy, another one is current by now, or the trainer is away.
    """
    async with open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.RollBackPolicyRequest(channel=policy_channel, expected_policy_id=policy_id)
        rolled_back = await _patiently(
            lambda: stub.RollBackPolicy(request, timeout=CALL_TIMEOUT_S), lambda reason: None, OUTAGE_S
        )
        return rolled_back.policy


AddressOption = Annotated[str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the trainer.")]
LimitOption = Annotated[int, typer.Option(min=1, max=1000, help="How many to list.")]


def train_command(
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Train from this data folder.")] = None,
    holdout: Annotated[int, typer.Option(min=0, max=16, help="Last events of every user that are held out.")] = 0,
    log_cursor: Annotated[
        int | None,
        typer.Option(min=0, metavar="CURSOR", help="Train from the reward log after this cursor; 0 for all."),
    ] = None,
    online: Annotated[
        bool,
        typer.Option("--online", help="Learn from the reward log as it grows, until Ctrl-C, and publish as it goes."),
    ] = False,
    start: Annotated[
        str, typer.Option(metavar="POLICY", help="With --online: the policy to start from; stable's by default.")
    ] = "",
    publish_lists: Annotated[
        int, typer.Option(min=0, help="With --online: lists between two publications; 0 for the trainer's default.")
    ] = 0,
    preference: Annotated[
        Preference, typer.Option(help="With --online: what moves the policy towards what pays; dpo is the foil.")
    ] = Preference.RSPO,
    preset: Annotated[str, typer.Option(help="Model and recipe: default, demo or tiny.")] = "",
    epochs: Annotated[int, typer.Option(min=0, max=10000, help="Passes over the data; 0 for the preset's.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    channel: Annotated[str, typer.Option(help="Channel to publish to; leave it out to publish to none.")] = "",
    codebook: Annotated[str, typer.Option(help="Codebook of the SIDs; the active one if left out.")] = "",
    show_list: Annotated[bool, typer.Option("--list", help="List the latest runs instead.")] = False,
    limit: LimitOption = 20,
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Train a policy and publish it; Ctrl-C cancels the run."""
    try:
        if show_list:
            for listed in asyncio.run(list_runs(address, limit)):
                _show_run(listed)
            return
        source: dict[str, Any] = {}
        if data is not None:  # the trainer's working directory is another one
            source["data_folder"] = training_pb2.DataFolderSource(path=str(data.resolve()), holdout_events=holdout)
        if online:
            policy_id = start or asyncio.run(current_policy(address, "stable"))
            if not policy_id:
                leave("--online: channel stable has no policy to start from: train one first, or name one with --start")
            source["online"] = training_pb2.OnlineSource(
                policy_id=policy_id,
                cursor=log_cursor or 0,
                publish_lists=publish_lists,
                preference=preference.message,
            )
        elif log_cursor is not None:
            source["reward_log"] = training_pb2.RewardLogSource(cursor=log_cursor)
        if len(source) != 1:
            leave("--data, --log-cursor, --online: give one of them, or --list")
        run = _train_with_bar(address, source, preset, epochs, seed, channel, codebook)
    except TrainingRunError as error:
        leave(str(error))
    except KeyboardInterrupt:
        leave("training run cancelled", code=130)
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    typer.echo(f"policy {run.policy.policy_id}" + (f", current in channel {channel}" if channel else ""))
    for name, value in sorted(run.metrics.items()):
        typer.echo(f"  {name:<24}{value:>12.4f}")


def _train_with_bar(
    address: str, source: dict[str, Any], preset: str, epochs: int, seed: int, channel: str, codebook_id: str
) -> training_pb2.TrainingRun:
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("queued", total=None, loss="")

        def show(run: training_pb2.TrainingRun) -> None:
            loss = f"loss {run.losses[-1].loss:.3f}" if run.losses else ""
            bar.update(task, description=state_name(run), completed=run.step, total=run.total_steps or None, loss=loss)

        return asyncio.run(
            train_and_wait(
                address,
                **source,
                preset=preset,
                epochs=epochs,
                seed=seed,
                channel=channel,
                codebook_id=codebook_id,
                progress=show,
                away=lambda reason: bar.update(task, description="away"),
            )
        )


def _show_run(run: training_pb2.TrainingRun) -> None:
    steps = f"{run.step}/{run.total_steps}" if run.total_steps else ""
    typer.echo(
        f"{run.run_id:<22}{run.create_time.ToJsonString()[:19]:<21}{state_name(run):<11}{steps:<14}"
        f"{run.policy.policy_id or run.error}"
    )


@policy_app.command("list")
def policy_list_command(limit: LimitOption = 20, address: AddressOption = DEFAULT_ADDRESS) -> None:
    """List published policies, the newest first, and the channels they are current in."""
    try:
        policies = asyncio.run(list_policies(address, limit))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    for policy in policies:
        typer.echo(
            f"{policy.policy.policy_id:<36}{policy.create_time.ToJsonString()[:19]:<21}"
            f"{policy.policy.codebook_id:<20}{', '.join(policy.channels)}"
        )


@policy_app.command("activate")
def policy_activate_command(
    policy_id: Annotated[str, typer.Argument(help="The policy; `gr4ad policy list` shows them.")],
    channel: Annotated[str, typer.Option(help="The channel.")] = "stable",
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Make a policy the current one of a channel."""
    try:
        policy = asyncio.run(activate_policy(address, policy_id, channel))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    typer.echo(f"{policy.policy.policy_id} is current in {', '.join(policy.channels)}")


@policy_app.command("rollback")
def policy_rollback_command(
    channel: Annotated[str, typer.Option(help="The channel.")] = "stable",
    address: AddressOption = DEFAULT_ADDRESS,
) -> None:
    """Make the policy current again that was so before a channel's current one; repeated, it goes further back."""
    rolled_back = ""
    try:
        rolled_back = asyncio.run(current_policy(address, channel))
        policy = asyncio.run(roll_back_policy(address, rolled_back, channel))
    except grpc.aio.AioRpcError as error:
        message = describe(error, address)
        if rolled_back and error.code() in AWAY:
            message += (
                f"; whether {rolled_back} was rolled back is not known: see `gr4ad policy list` before you repeat it"
            )
        leave(message)
    typer.echo(f"{policy.policy.policy_id} is current in {', '.join(policy.channels)}; {rolled_back} was rolled back")
