"""The demo: data in, four services up, codebook, ingest, training, scoring, traffic, report."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from gr4ad.training.v1 import training_pb2
from gr4ad_core.learning.data_folder import check_folder
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.settings import ServiceSettings
from gr4ad_runtime.telemetry import configure_telemetry
from rich.console import Console

from gr4ad_tools import codebook, codebook_fit, evaluation, figures, ingest, suite_processes, train, yardstick
from gr4ad_tools.audience import Audience
from gr4ad_tools.demo import arms, online, phases
from gr4ad_tools.demo.progress import Phase, Steps
from gr4ad_tools.demo.record import Record
from gr4ad_tools.demo.report import write_report
from gr4ad_tools.demo.state import RunState
from gr4ad_tools.leave_one_out import LeaveOneOut, write_training_folder
from gr4ad_tools.otlp_receiver import OtlpReceiver
from gr4ad_tools.pacing import Pacing
from gr4ad_tools.simulate import SCENARIOS, Market, version_hash
from gr4ad_tools.split import CANARY, STABLE
from gr4ad_tools.tracker import Tracker
from gr4ad_tools.up import Suite

SCENARIO = "steady"
CODEBOOK_ID = "demo"
# Of the traces that start in a service: load is not traced by its caller, and a few of its requests suffice.
SAMPLE_RATIO = "0.002"
# Its users come again and again: their figures are to be those of the engine.
NO_RESULT_CACHE = {"GR4AD_RESULT_CACHE_SECONDS": "0"}


@dataclass(frozen=True)
class DemoOptions:
    """What a demo run is asked for.

    Attributes:
        data: Normalised data folder; none for a simulated market.
        out: Folder of the run, its summary and its report.
        seed: Of the market, the codebook, the training and the users drawn.
        preset: Named training recipe; empty for `demo` on a simulated market and `default` on a data folder.
        command: The command as given, for the summary.
        chaos: Whether to kill each service in turn while the policy learns online.
        preference: What moves the policy towards what pays while it learns online.
    """

    data: Path | None
    out: Path
    seed: int
    preset: str
    command: str
    chaos: bool = False
    preference: train.Preference = train.Preference.RSPO


class DataError(Exception):
    """The data folder cannot be used; the text lists why."""


async def run_demo(options: DemoOptions, console: Console) -> tuple[dict[str, Any], Record]:
    """Run the demo, or go on with an interrupted one of the same options.

    Returns:
        The summary, which is also in `summary.json` beside `report.html` in the output folder, and what it is made of.

    Raises:
        DataError: The data folder has problems.
        OutputFolderError: The output folder holds something else.
        TrainingRunError: A training run did not succeed.
    """
    start = time.monotonic()
    source = source_of(options)
    parameters = {**source, "seed": options.seed, "preset": options.preset, "preference": options.preference}
    state = RunState.open(options.out, parameters)
    earlier_seconds = float(state.results.get("seconds", 0.0))
    record = Record(source=f"Data folder {options.data.name}" if options.data else "Simulated market")
    with Steps(console, record.phase_seconds) as steps:
        folder, market = _prepare(options, state, steps)
        with steps.phase("Hold out test targets"):
            items, split = phases.load(folder)
            training_folder = state.folder.resolve() / "training"
            write_training_folder(folder, split.train, training_folder)
        run_id = f"demo-{options.seed}-{state.attempt}"
        async with (
            OtlpReceiver() as receiver,
            _caller_telemetry(receiver),
            _suite(state.folder, receiver, steps) as (suite, channels),
            contextlib.AsyncExitStack() as stack,
        ):
            artifacts = suite.artifact_store
            with steps.phase("Fit and activate the codebook") as phase:
                if "codebook" not in state.results:
                    await asyncio.to_thread(
                        codebook_fit.fit_codebook_from_folder,
                        training_folder,
                        artifacts,
                        CODEBOOK_ID,
                        codebook_fit.FitOptions(seed=options.seed),
                        state.folder / "codebook-fit",
                        lambda step, share: phase.update(round(100 * share), 100),
                    )
                    state.done("codebook", CODEBOOK_ID)
                registered = await codebook.activate_codebook(suite.addresses["sid_assigner"], CODEBOOK_ID)
                record.codebook_id, record.level_sizes = CODEBOOK_ID, tuple(registered.level_sizes)
                phase.finish(str(record.level_sizes))
            with steps.phase("Ingest the ads", len(items)) as phase:
                await ingest.ingest_folder(folder, suite.addresses["sid_assigner"], progress=phase.update)
                record.sids_NT = await phases.read_sids(channels["sid_assigner"], [item.item_id for item in items])
                record.figures |= phases.sid_figures(record.sids_NT, record.level_sizes)
            preset = options.preset or ("default" if options.data else "demo")
            with steps.phase("Train the policy") as phase:
                run = await _train(suite, state, str(training_folder), preset, options.seed, phase)
                policy_id = run.policy.policy_id
                record.loss_steps = [point.step for point in run.losses]
                record.losses = [point.loss for point in run.losses]
            state.done("seconds", earlier_seconds + time.monotonic() - start)
            await arms.begin_with(suite, channels, policy_id, items)

            contexts = split.contexts()
            before = await arms.reward_summary(channels["reward_logger"])
            with steps.phase("Score held-out users over gRPC", len(contexts)) as phase:
                record.figures |= phases.baseline_figures(split)
                scored = await evaluation.score(
                    channels["ad_generator"],
                    contexts,
                    split.interactions.item_ids,
                    run_id=f"{run_id}-score",
                    candidate_count=phases.CANDIDATES,
                    on_answer=phase.advance,
                )
                record.figures |= phases.score_figures(split, scored)
                record.users = phases.generated_for(split, scored, items, options.seed)
            # The yardstick looks at the market as the log left it.
            judge = copy.deepcopy(market)
            tracked, traced = await stack.enter_async_context(_tracker(suite, channels["reward_logger"]))
            with steps.phase("Learn online on two arms") as phase:
                pacing: Pacing | None = None
                audience: Audience
                if market is not None:
                    audience, pacing = online.market_audience(market, split, items, options.seed)
                else:
                    sids = channels["sid_assigner"]
                    audience, record.bids_made_up = await online.replay_audience(split, items, sids, options.seed)
                record.online = await online.learn_online(
                    suite,
                    channels,
                    traced,
                    tracked,
                    audience,
                    pacing,
                    policy_id=policy_id,
                    seed=options.seed,
                    run_id=run_id,
                    chaos=options.chaos,
                    preference=options.preference,
                    on_progress=lambda share, note: phase.update(share, 1.0, note),
                )
                record.figures |= record.online.figures
                phase.finish(f"{len(record.online.publications)} policies published")
            asked = [scored]
            if judge is not None:
                with steps.phase("Judge revenue by the market's truth"):
                    met = {shown.user_id for shown in record.online.traffic.shown}
                    figures_of_revenue, judged = await _judge(
                        channels, judge, split, met, options.preference, options.seed, run_id
                    )
                    asked += judged
                    record.figures |= figures_of_revenue
            with steps.phase("Serve concurrent users, swap policies") as phase:
                policies = [policy_id, *(policy.policy.policy_id for policy in record.online.publications[-1:])]
                await phases.swap_policies(record, channels, contexts, policies, run_id, phase.update)
            with steps.phase("Add and pause ads beside them") as phase:
                await phases.change_ads(record, channels, contexts, items, run_id, phase.update)
                record.figures |= phases.traffic_figures(record, asked)
            with steps.phase("Report what was shown"):
                record.figures |= await phases.report_what_was_shown(record, tracked, split, items)
            with steps.phase("Follow three traces"):
                async with (
                    open_channel(suite.addresses["ad_generator"]) as generator,
                    open_channel(suite.addresses["sid_assigner"]) as sids,
                ):
                    record.request_trace = await phases.trace_request(receiver, generator, contexts[0], run_id)
                    record.change_trace = await phases.trace_change(receiver, sids, items[0], run_id)
                record.learning_trace = await phases.trace_learning(receiver, record.online.trace_id)
                record.figures |= await phases.log_figures(channels, before.served_lists, suite.restarts)
                after = await arms.reward_summary(channels["reward_logger"])
                record.figures |= online.event_figures(tracked, before, after)
    record.figures["demo_seconds"] = figures.Figure(round(earlier_seconds + time.monotonic() - start, 1), "s")
    document = figures.document(
        record.figures, options.command, options.seed, source=source, phase_seconds=record.phase_seconds
    )
    figures.write_json(options.out / "summary.json", document)
    write_report(options.out / "report.html", record, document)
    state.finish()
    return document, record


def source_of(options: DemoOptions) -> dict[str, str]:
    """Return what tells the data of a run apart: a digest of the folder, or the market and its version."""
    if options.data:
        return {"data_sha256": phases.fingerprint(options.data)}
    return {"market": SCENARIO, "market_version": version_hash(SCENARIOS[SCENARIO]())}


def _prepare(options: DemoOptions, state: RunState, steps: Steps) -> tuple[Path, Market | None]:
    """Return the data folder, the given one, checked, or a simulated one, written once; and the market behind it."""
    if options.data is not None:
        with steps.phase("Check the data"):
            problems = check_folder(options.data)
            if problems:
                shown = "\n".join(f"{p.file}:{p.line}: {p.message}" for p in problems[:10])
                raise DataError(f"{options.data}: {len(problems)} problems; see them all by: gr4ad data check\n{shown}")
        return options.data, None
    folder = state.folder / "market"
    with steps.phase("Simulate a market") as phase:
        market = Market(SCENARIO, options.seed)
        # Making the log also tires the users and spends the budgets that its lists did, whether it is written or not.
        log = market.log if "market" in state.results else market.write_folder(folder)
        state.done("market", str(folder))
        phase.finish(f"{len(log):,} events")
    return folder, market


@contextlib.asynccontextmanager
async def _suite(
    folder: Path, receiver: OtlpReceiver, steps: Steps
) -> AsyncIterator[tuple[Suite, dict[str, grpc.aio.Channel]]]:
    """Start the suite, and open plain channels to it: load is not traced from here, single requests are."""
    suite = Suite(
        folder / "suite",
        canary=True,
        otlp_endpoint=receiver.endpoint,
        env={"GR4AD_TRACE_SAMPLE_RATIO": SAMPLE_RATIO},
        service_env={
            **dict.fromkeys(("ad_generator", suite_processes.CANARY), NO_RESULT_CACHE),
            "rspo_trainer": {
                "GR4AD_OUTCOME_WAIT_SECONDS": str(online.OUTCOME_WAIT_S),
                "GR4AD_PUBLISH_SECONDS": str(online.PUBLISH_S),
            },
        },
    )
    async with contextlib.AsyncExitStack() as stack:
        with steps.phase("Start four services and PostgreSQL") as phase:
            await stack.enter_async_context(suite)
            phase.finish(f"logs in {suite.workdir / 'logs'}")
        channels = {name: grpc.aio.insecure_channel(address) for name, address in suite.addresses.items()}
        try:
            yield suite, channels
        finally:
            for channel in channels.values():
                await channel.close()
            with steps.phase("Drain and stop"):
                await stack.aclose()


@contextlib.asynccontextmanager
async def _tracker(suite: Suite, channel: grpc.aio.Channel) -> AsyncIterator[tuple[Tracker, grpc.aio.Channel]]:
    """Report outcomes while the block lasts; yields the tracker and a traced channel to the reward log."""
    async with open_channel(suite.addresses["reward_logger"]) as traced, Tracker(channel, traced).running() as tracker:
        yield tracker, traced


async def _judge(
    channels: Mapping[str, grpc.aio.Channel],
    market: Market,
    split: LeaveOneOut,
    met: Collection[str],
    learned_by: train.Preference,
    seed: int,
    run_id: str,
) -> tuple[dict[str, figures.Figure], list[evaluation.ScoredLists]]:
    """Let both arms answer the same fixed requests, and return what their lists are worth, and the answers.

    Beside the lift on all requests stands that on users who were not `met` while the policy learned.
    """
    fixed = yardstick.FixedRequests.draw(market, split.interactions, seed)
    processes = {"vsl": arms.GENERATORS[STABLE], learned_by.value: arms.GENERATORS[CANARY]}
    answers = {
        name: await yardstick.ask_all(channels[process], market, fixed, f"{run_id}-judge-{name}")
        for name, process in processes.items()
    }
    lists = {name: yardstick.shown_lists(market, answer) for name, answer in answers.items()}
    found = yardstick.revenue_figures(market, fixed, lists, seed)
    strangers_R = np.array([market.user_ids[user] not in met for user in fixed.users_R])
    for suffix, rows_R in {"": np.ones(len(strangers_R), bool), "_strangers": strangers_R}.items():
        learned_RL, vsl_RL = lists[learned_by.value][rows_R], lists["vsl"][rows_R]
        found |= yardstick.lift_figures(
            market, fixed.only(rows_R), learned_RL, vsl_RL, seed, f"{learned_by.value}{suffix}"
        )
    return found, list(answers.values())


@contextlib.asynccontextmanager
async def _caller_telemetry(receiver: OtlpReceiver) -> AsyncIterator[None]:
    """Trace the calls that this process makes on traced channels."""
    telemetry = configure_telemetry(
        "caller", ServiceSettings(port=0, otlp_endpoint=receiver.endpoint, trace_sample_ratio=1.0)
    )
    try:
        yield
    finally:
        telemetry.shutdown()


async def _train(
    suite: Suite, state: RunState, folder: str, preset: str, seed: int, phase: Phase
) -> training_pb2.TrainingRun:
    """Train and wait; a run that an interruption left behind is waited for again, a failed one is asked for anew."""
    name = "train"
    if name not in state.results:
        state.done(name, f"demo-{seed}-{state.attempt}-train")

    def show(run: training_pb2.TrainingRun) -> None:
        loss = f"loss {run.losses[-1].loss:.3f}" if run.losses else ""
        phase.update(run.step, run.total_steps or 1, loss)

    try:
        return await train.train_and_wait(
            suite.addresses["rspo_trainer"],
            data_folder=training_pb2.DataFolderSource(path=folder),
            preset=preset,
            seed=seed,
            channel=STABLE,
            request_id=state.results[name],
            progress=show,
        )
    except train.TrainingRunError:
        state.forget(name)
        raise
