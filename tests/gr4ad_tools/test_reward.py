"""The summary of the reward log, from a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.app import Lifecycle, bind, drain, make_server
from gr4ad_runtime.channels import open_channel
from gr4ad_tools.reward import app, reward_summary
from reward_logger.__main__ import build
from reward_logger.settings import RewardLoggerSettings
from typer.testing import CliRunner

from tests.oracles.reward_messages import feedback, impression, served_list


@pytest.fixture
async def address(database_url: str) -> AsyncIterator[str]:
    settings = RewardLoggerSettings(port=0, database_url=database_url)
    lifecycle = Lifecycle()
    server = make_server(settings, lifecycle)
    port = bind(server, settings)
    await build(server, lifecycle, settings)
    await server.start()
    yield f"127.0.0.1:{port}"
    await drain(server, lifecycle, 0.0)


async def test_the_summary_counts_the_log(address: str) -> None:
    async with open_channel(address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        await stub.BatchCreateServedLists(
            reward_pb2.BatchCreateServedListsRequest(served_lists=[served_list(1), served_list(2)])
        )
        await stub.BatchCreateImpressions(
            reward_pb2.BatchCreateImpressionsRequest(impressions=[impression("e1", 1, "a"), impression("e2", 9, "a")])
        )
        conversion = feedback("e1", 1, "a", reward_pb2.FEEDBACK_TYPE_CONVERSION, revenue=1_250_000)
        await stub.BatchCreateFeedback(
            reward_pb2.BatchCreateFeedbackRequest(feedback=[conversion, feedback("e1", 1, "a")])
        )
    summary = await reward_summary(address)
    assert (summary.served_lists, summary.unjoined_events, summary.revenue_micros) == (2, 1, 1_250_000)
    # The command runs a loop of its own, hence in a thread.
    result = await asyncio.to_thread(CliRunner().invoke, app, ["summary", "--address", address])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "GetRewardSummary" not in line]  # the server's own log
    shown = dict(line.rsplit(maxsplit=1) for line in lines)
    assert shown == {
        "served lists": "2",
        "without events": "1",
        "impressions": "2",
        "clicks": "1",
        "conversions": "1",
        "revenue": "1.25",
        "unjoined events": "1",
    }


def test_a_log_that_is_not_there_is_named(free_port: Callable[[], int]) -> None:
    address = f"127.0.0.1:{free_port()}"
    result = CliRunner().invoke(app, ["summary", "--address", address])
    assert result.exit_code == 1
    assert address in result.output.replace("\n", "")
