"""The report of an A/B split from the reward log alone: what it counts, how sure it is, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import numpy as np
import pytest
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.app import Lifecycle, bind, drain, make_server
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.errors import FailedPreconditionError, InvalidArgumentError
from gr4ad_tools.ab import app, arm_figures, compare, comparison_table
from gr4ad_tools.arm_log import ArmLog, read_arms
from gr4ad_tools.bootstrap import bootstrap_ratio
from reward_logger.__main__ import build
from reward_logger.settings import RewardLoggerSettings
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.oracles.reward_messages import feedback, impression, served_list
from tests.plain_channel import plain_channel


@pytest.fixture
async def address(database_url: str) -> AsyncIterator[str]:
    settings = RewardLoggerSettings(port=0, database_url=database_url, read_chunk=2)
    lifecycle = Lifecycle()
    server = make_server(settings, lifecycle)
    port = bind(server, settings)
    await build(server, lifecycle, settings)
    await server.start()
    yield f"127.0.0.1:{port}"
    await drain(server, lifecycle, 0.0)


async def fill(address: str, lists: Sequence[reward_pb2.ServedList]) -> None:
    """Store lists; ads a and b of each are shown, ad b of every even one is clicked and pays a unit."""
    async with open_channel(address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        await stub.BatchCreateServedLists(reward_pb2.BatchCreateServedListsRequest(served_lists=lists))
        numbers = [int(one.request_id.removeprefix("request-")) for one in lists]
        shown = [impression(f"{n}{ad}", n, ad) for n in numbers for ad in "ab"]
        await stub.BatchCreateImpressions(reward_pb2.BatchCreateImpressionsRequest(impressions=shown))
        clicks = [feedback(f"{n}b", n, "b", revenue=1_000_000) for n in numbers if n % 2 == 0]
        await stub.BatchCreateFeedback(reward_pb2.BatchCreateFeedbackRequest(feedback=clicks))


def of_arm(channel: str, numbers: Iterable[int], latency_ms: float = 10.0) -> list[reward_pb2.ServedList]:
    lists = []
    for number in numbers:
        lists.append(served_list(number, user_id=f"{channel}-{number // 2}"))
        lists[-1].channel, lists[-1].latency_us = channel, int(1000 * (latency_ms + number))
        lists[-1].bucket = number
    return lists


async def invoke(*arguments: str) -> Result:
    # The command runs a loop of its own, hence in a thread.
    return await asyncio.to_thread(CliRunner().invoke, app, ["report", *arguments])


async def test_the_report_reads_the_log_alone(address: str) -> None:
    outside = [served_list(98), served_list(99)]
    outside[1].channel = "stable"  # served before any split: no bucket
    await fill(address, [*of_arm("stable", range(8)), *of_arm("canary", range(10, 13), 20.0), *outside])
    result = await invoke("--address", address, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout[result.stdout.index("{\n") :])  # the server of this process logs there, too
    values = {name: figure["value"] for name, figure in document["figures"].items()}
    counts = ("lists", "users", "lists_shown", "impressions", "clicks")
    assert [values[f"stable_{name}"] for name in counts] == [8, 4, 8, 16, 4]
    assert [values[f"canary_{name}"] for name in counts] == [3, 2, 3, 6, 2]
    assert values["lists_outside"] == 2
    assert values["stable_ctr"] == pytest.approx(4 / 16)
    assert values["canary_rpm"] == pytest.approx(2 / 6 * 1000)
    assert values["canary_rpm_lift"] == pytest.approx(100 / 3)
    assert (values["stable_p50_ms"], values["stable_p99_ms"], values["canary_p99_ms"]) == (14.0, 17.0, 32.0)
    # Each stable user has two lists, one of them clicked: whoever is drawn, the rate is the same.
    assert values["stable_ctr_ci_low"] == values["stable_ctr_ci_high"] == pytest.approx(0.25)
    # The canary's users have two lists with a click, and one list with a click.
    assert (values["canary_ctr_ci_low"], values["canary_ctr_ci_high"]) == (0.25, 0.5)
    assert (document["baseline"], document["arm"], document["to_cursor"]) == ("stable", "canary", 13)

    table = (await invoke("--address", address)).output
    assert "revenue per mille" in table
    assert "lists outside the split, left out: 2" in table
    assert "(0.2500 … 0.5000)" in table


async def test_a_cursor_leaves_out_what_lies_before(address: str) -> None:
    await fill(address, of_arm("stable", range(3)))
    async with plain_channel(address) as channel:
        first = await read_arms(channel)
        await fill(address, of_arm("canary", range(10, 15)))
        second = await read_arms(channel, first.cursor)
        nothing = await read_arms(channel, second.cursor)
    assert (first.lists, second.lists, nothing.lists) == ({"stable": 3}, {"canary": 5}, {})
    assert second.cursor == nothing.cursor == 8


async def test_an_arm_that_nobody_saw_is_named(address: str) -> None:
    await fill(address, of_arm("stable", range(3)))
    result = await invoke("--address", address)
    assert result.exit_code == 1
    assert "channel: canary: no list of it was shown, of 0 served: send it traffic" in result.output
    assert "this part of the log has stable (3 lists)" in result.output
    beyond = await invoke("--address", address, "--cursor", "9")
    assert beyond.exit_code == 1
    assert "cursor: 9: the last list is 3" in beyond.output


def test_a_log_that_is_not_there_is_named(free_port: Callable[[], int]) -> None:
    address = f"127.0.0.1:{free_port()}"
    result = CliRunner().invoke(app, ["report", "--address", address])
    assert result.exit_code == 1
    assert address in result.output.replace("\n", "")


def rewarded(
    channel: str, user: str, impressions: int, clicks: int = 0, revenue: float = 0.0, latency_us: int = 0
) -> reward_pb2.RewardedList:
    outcome = reward_pb2.Outcome(
        ad_id="a", impression_count=impressions, click_count=clicks, revenue_micros=round(1e6 * revenue)
    )
    served = reward_pb2.ServedList(
        channel=channel, user_context=type_pb2.UserContext(user_id=user), latency_us=latency_us, bucket=0
    )
    return reward_pb2.RewardedList(served_list=served, outcomes=[outcome] if impressions or clicks else [])


def test_lists_without_a_user_stand_alone() -> None:
    log = ArmLog()
    for user in ("u", "", "u", "", "v"):
        log.add(rewarded("stable", user, 1))
    assert len(set(log.arm("stable").users_N.tolist())) == 4
    log.add(rewarded("canary", "u", 1))
    assert log.arm("canary").users_N[0] == log.arm("stable").users_N[0]  # a user may move to the other arm
    assert log.arm("nobody").shown == 0


def test_lists_without_latency_count_for_revenue_only() -> None:
    log = ArmLog()
    for channel in ("stable", "canary"):
        for number in range(4):
            log.add(rewarded(channel, f"u{number}", 2, 1, 0.5, latency_us=0 if channel == "stable" else 1500))
    figures = arm_figures(log, "stable", "canary", seed=0)
    assert math.isnan(figures["stable_p50_ms"].value)
    assert (figures["stable_p50_ms"].n, figures["stable_p50_ms_ci_low"].n) == (0, 0)
    assert (figures["canary_p99_ms"].value, figures["canary_p99_ms"].n) == (1.5, 4)
    assert figures["stable_rpm"].value == figures["canary_rpm"].value == 250.0
    assert figures["canary_rpm_lift"].value == 0.0
    console = Console(file=io.StringIO(), width=100)
    console.print(comparison_table(figures, "stable", "canary"))
    assert console.file.getvalue().count("not measured") == 2


def test_arms_that_cannot_be_compared_are_refused() -> None:
    log = ArmLog()
    log.add(rewarded("stable", "u", 1))
    log.add(rewarded("canary", "u", 0))
    with pytest.raises(FailedPreconditionError, match=r"^channel: canary: no list of it was shown, of 1 served"):
        arm_figures(log, "stable", "canary")
    with pytest.raises(InvalidArgumentError, match="^arm: stable: name two different channels"):
        arm_figures(log, "stable", "stable")
    with pytest.raises(FailedPreconditionError, match="this part of the log has no channel$"):
        arm_figures(ArmLog(), "stable", "canary")


def simulated(random: np.random.Generator, users: int, rpm: dict[str, float]) -> ArmLog:
    """Two arms of users who each have a worth of their own and one to five lists of four impressions."""
    log = ArmLog()
    for channel, mean in rpm.items():
        for user in range(users):
            worth = random.exponential(mean)
            for _ in range(random.integers(1, 6)):
                revenue = random.poisson(worth * 4 / 1000) * 1.0
                log.add(rewarded(channel, f"{channel}-{user}", 4, int(revenue > 0), revenue))
    return log


def test_the_lift_holds_the_truth_about_as_often_as_it_says() -> None:
    random, rounds, held = np.random.default_rng(5), 60, 0
    for seed in range(rounds):
        log = simulated(random, 100, {"stable": 250.0, "canary": 300.0})
        lift = compare(log.arm("canary"), log.arm("stable"), seed)
        held += lift["rpm_lift_ci_low"].value <= 20.0 <= lift["rpm_lift_ci_high"].value
        assert lift["rpm_lift_ci_low"].value <= lift["rpm_lift"].value <= lift["rpm_lift_ci_high"].value
    assert held >= 0.86 * rounds  # three standard deviations of a share of 0.95 in 60 rounds are 0.084


def test_figures_are_those_of_the_bootstrap_and_of_the_seed() -> None:
    log = simulated(np.random.default_rng(1), 50, {"stable": 250.0, "canary": 300.0})
    figures = arm_figures(log, seed=4)
    assert arm_figures(log, seed=4)["canary_rpm_ci_low"] == figures["canary_rpm_ci_low"]
    expected = bootstrap_ratio(log.arm("canary").rpm_sums, log.arm("stable").rpm_sums, seed=4)
    assert figures["canary_rpm_lift_ci_high"].value == pytest.approx(100 * expected.high)
    assert figures["canary_rpm_lift_ci_high"].unit == "%"
    assert arm_figures(log, seed=5)["canary_rpm_ci_low"] != figures["canary_rpm_ci_low"]
