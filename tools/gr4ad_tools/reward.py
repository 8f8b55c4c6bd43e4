"""What the reward log holds."""

from __future__ import annotations

import asyncio
from typing import Annotated

import grpc
import typer
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.channels import open_channel

from gr4ad_tools.call_error import describe, leave

DEFAULT_ADDRESS = "127.0.0.1:50053"
ADDRESS_VARIABLE = "GR4AD_REWARD_LOGGER_ADDRESS"
CALL_TIMEOUT_S = 60.0
MICROS = 1_000_000

app = typer.Typer(help="Look into the reward log.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look into the reward log."""


async def reward_summary(address: str) -> reward_pb2.GetRewardSummaryResponse:
    """Count what the reward log at an address holds.

    Raises:
        grpc.aio.AioRpcError: It does not answer.
    """
    async with open_channel(address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        return await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest(), timeout=CALL_TIMEOUT_S)


@app.command("summary")
def summary_command(
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the reward logger.")
    ] = DEFAULT_ADDRESS,
) -> None:
    """Count the lists served, the events reported, and what could not be joined."""
    try:
        summary = asyncio.run(reward_summary(address))
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    shown = {
        "served lists": f"{summary.served_lists}",
        "without events": f"{summary.lists_without_events}",
        "impressions": f"{summary.impressions}",
        "clicks": f"{summary.clicks}",
        "conversions": f"{summary.conversions}",
        "revenue": f"{summary.revenue_micros / MICROS:.2f}",
        "unjoined events": f"{summary.unjoined_events}",
    }
    for name, value in shown.items():
        typer.echo(f"{name:<16}{value:>14}")
