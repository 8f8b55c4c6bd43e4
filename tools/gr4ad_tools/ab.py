"""Compares the arms of an A/B split by the reward log alone: what their lists earned, and how fast they came."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Mapping
from typing import Annotated, Final

import grpc
import numpy as np
import typer
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.errors import FailedPreconditionError, Gr4adError, InvalidArgumentError
from rich.console import Console
from rich.table import Table

from gr4ad_tools import figures
from gr4ad_tools.arm_log import Arm, ArmLog, read_arms
from gr4ad_tools.bootstrap import Interval, bootstrap_quantiles, bootstrap_ratio
from gr4ad_tools.call_error import describe, leave
from gr4ad_tools.figures import Figure, percentile
from gr4ad_tools.reward import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from gr4ad_tools.split import CANARY, STABLE

PERCENT: Final = 100.0
US_PER_MS: Final = 1000.0
LATENCY_PERCENTILES: Final = (50, 99)

app = typer.Typer(help="Compare the arms of an A/B split.", no_args_is_help=True)


def arm_figures(log: ArmLog, baseline: str = STABLE, arm: str = CANARY, seed: int = 0) -> dict[str, Figure]:
    """Return what each of two arms earned, with 95 % intervals clustered by user, and the lift of one over the other.

    Args:
        log: The lists.
        baseline: Channel to compare with.
        arm: Channel to compare.
        seed: Of the bootstrap.

    Raises:
        InvalidArgumentError: Both are the same channel.
        FailedPreconditionError: No list of an arm was shown.
    """
    if arm == baseline:
        raise InvalidArgumentError("arm", arm, "name two different channels: one is compared with the other")
    arms = {channel: log.arm(channel) for channel in (baseline, arm)}
    for channel, lists in arms.items():
        if not lists.shown:
            others = ", ".join(f"{name} ({count} lists)" for name, count in log.lists.items()) or "no channel"
            raise FailedPreconditionError(
                "channel",
                channel,
                f"no list of it was shown, of {len(lists.users_N)} served: send it traffic with the header "
                "gr4ad-bucket and report impressions, or choose another channel or cursor; "
                f"this part of the log has {others}",
            )
    found = {name: figure for channel, lists in arms.items() for name, figure in _measures(channel, lists, seed)}
    found |= {f"{arm}_{name}": figure for name, figure in compare(arms[arm], arms[baseline], seed).items()}
    total = sum(log.lists.values()) + log.lists_outside
    return found | {"lists_outside": Figure(log.lists_outside, "lists", total)}


def compare(arm: Arm, baseline: Arm, seed: int) -> dict[str, Figure]:
    """Return the relative lift of an arm's revenue per mille and CTR over a baseline's, in %, with their intervals."""
    impressions = int(arm.impressions_N.sum() + baseline.impressions_N.sum())
    lifts = {
        "rpm_lift": bootstrap_ratio(arm.rpm_sums, baseline.rpm_sums, seed=seed),
        "ctr_lift": bootstrap_ratio(arm.ctr_sums, baseline.ctr_sums, seed=seed),
    }
    return {
        key: figure
        for name, lift in lifts.items()
        for key, figure in _with_interval(name, lift, "%", impressions, PERCENT).items()
    }


def _measures(channel: str, arm: Arm, seed: int) -> list[tuple[str, Figure]]:
    lists, impressions = len(arm.users_N), int(arm.impressions_N.sum())
    found = {
        "lists": Figure(lists, "lists", lists),
        "users": Figure(len(np.unique(arm.users_N)), "users", lists),
        "lists_shown": Figure(arm.shown, "lists", lists),
        "impressions": Figure(impressions, "impressions", arm.shown),
        "clicks": Figure(int(arm.clicks_N.sum()), "clicks", impressions),
    }
    ctr, rpm = bootstrap_ratio(arm.ctr_sums, seed=seed), bootstrap_ratio(arm.rpm_sums, seed=seed)
    found |= _with_interval("ctr", ctr, "clicks per impression", impressions)
    found |= _with_interval("rpm", rpm, "currency units per 1,000 impressions", impressions)
    known_N = arm.latency_us_N > 0
    latency_ms_N = arm.latency_us_N[known_N] / US_PER_MS
    quantiles = [q / 100 for q in LATENCY_PERCENTILES]
    intervals = bootstrap_quantiles(arm.users_N[known_N], latency_ms_N, quantiles, seed=seed)
    for q, interval in zip(LATENCY_PERCENTILES, intervals, strict=True):
        found |= _with_interval(f"p{q}_ms", interval, "ms", len(latency_ms_N))
        found[f"p{q}_ms"] = percentile(latency_ms_N.tolist(), q, "ms")
    return [(f"{channel}_{name}", figure) for name, figure in found.items()]


def _with_interval(name: str, interval: Interval, unit: str, n: int, scale: float = 1.0) -> dict[str, Figure]:
    ends = {"": interval.value, "_ci_low": interval.low, "_ci_high": interval.high}
    return {f"{name}{end}": Figure(scale * value, unit, n) for end, value in ends.items()}


def comparison_table(found: Mapping[str, Figure], baseline: str, arm: str) -> Table:
    """Return the figures as a person reads them: a column for each arm, and the lift."""

    def measured(name: str, form: str) -> str:
        value, low, high = (found[f"{name}{end}"].value for end in ("", "_ci_low", "_ci_high"))
        return f"{value:{form}}\n({low:{form}} … {high:{form}})" if not math.isnan(value) else "not measured"

    table = Table("", baseline, arm, f"{arm} over {baseline}, %", title="95 % intervals, clustered by user")
    for name in ("lists", "users", "lists_shown", "impressions", "clicks"):
        counts = [f"{found[f'{channel}_{name}'].value:,.0f}" for channel in (baseline, arm)]
        table.add_row(name.replace("_", " "), *counts, "")
    rows = {"ctr": ("CTR", ".4f"), "rpm": ("revenue per mille", ",.2f")}
    rows |= {f"p{q}_ms": (f"latency p{q}, ms", ".1f") for q in LATENCY_PERCENTILES}
    for name, (label, form) in rows.items():
        lift = f"{arm}_{name}_lift"
        values = [measured(f"{channel}_{name}", form) for channel in (baseline, arm)]
        table.add_row(label, *values, measured(lift, "+.1f") if lift in found else "")
    return table


@app.callback()
def _group() -> None:
    """Compare the arms of an A/B split."""


@app.command("report")
def report_command(
    address: Annotated[
        str, typer.Option(envvar=ADDRESS_VARIABLE, help="Address of the reward logger.")
    ] = DEFAULT_ADDRESS,
    cursor: Annotated[int, typer.Option(min=0, help="Read the lists after this cursor of the log.")] = 0,
    baseline: Annotated[str, typer.Option(help="Channel to compare with.")] = STABLE,
    arm: Annotated[str, typer.Option(help="Channel to compare.")] = CANARY,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Compare what two channels' lists earned and how fast they came, from the reward log alone."""

    async def read() -> ArmLog:
        async with open_channel(address) as channel:
            return await read_arms(channel, cursor)

    try:
        log = asyncio.run(read())
        found = arm_figures(log, baseline, arm, seed)
    except grpc.aio.AioRpcError as error:
        leave(describe(error, address))
    except Gr4adError as error:
        leave(error.message)
    if as_json:
        command = " ".join(["gr4ad", *sys.argv[1:]])
        span = {"baseline": baseline, "arm": arm, "from_cursor": cursor, "to_cursor": log.cursor}
        print(json.dumps(figures.document(found, command, seed, **span), indent=2))
        return
    console = Console()
    console.print(comparison_table(found, baseline, arm))
    console.print(f"lists outside the split, left out: {log.lists_outside:,}; log read up to {log.cursor}")
