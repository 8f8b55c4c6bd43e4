"""Runs and policies from the command line, against a trainer that does as it is told."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest
import typer
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_tools import train
from gr4ad_tools.train import TrainingRunError, policy_app, train_and_wait, train_command
from typer.testing import CliRunner

FOLDER = training_pb2.DataFolderSource(path="/data", holdout_events=1)
app = typer.Typer()
app.command("train")(train_command)
app.add_typer(policy_app, name="policy")


class TrainerDouble(training_pb2_grpc.TrainingServiceServicer):
    """Walks each run through the given states, one per look.

    Attributes:
        states: States still to come; the last one stays.
        requests: Requests to create a run.
        cancelled: Runs that were cancelled.
        outages: Calls to refuse as unavailable.
        channels: Channels that `policy-1` is current in.
        newer_policies: Policies after it, which are current nowhere.
        rolled_back: Requests to roll back; those of the channel stable find an earlier policy.
        lost_answers: Roll-backs whose answers are lost.
    """

    def __init__(self, *states: training_pb2.TrainingRunState.ValueType) -> None:
        self.states = list(states)
        self.requests: list[training_pb2.CreateTrainingRunRequest] = []
        self.cancelled: list[str] = []
        self.activated: list[tuple[str, str]] = []
        self.outages = 0
        self.channels = ["canary", "stable"]
        self.newer_policies = 0
        self.rolled_back: list[training_pb2.RollBackPolicyRequest] = []
        self.lost_answers = 0

    def run(self) -> training_pb2.TrainingRun:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        run = training_pb2.TrainingRun(run_id="run-1", state=state, step=5, total_steps=10)
        run.losses.add(step=5, loss=1.25)
        if state == training_pb2.TRAINING_RUN_STATE_SUCCEEDED:
            run.policy.policy_id = "policy-1"
            run.metrics["held_out_recall@10"] = 0.5
        if state == training_pb2.TRAINING_RUN_STATE_FAILED:
            run.error = "data_folder: nowhere: give another"
        return run

    async def _outage(self, context: grpc.aio.ServicerContext) -> None:
        if self.outages:
            self.outages -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    async def CreateTrainingRun(
        self, request: training_pb2.CreateTrainingRunRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.CreateTrainingRunResponse:
        await self._outage(context)
        if request.preset == "huge":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "preset: 'huge': choose another")
        self.requests.append(request)
        return training_pb2.CreateTrainingRunResponse(training_run=self.run())

    async def GetTrainingRun(
        self, request: training_pb2.GetTrainingRunRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.GetTrainingRunResponse:
        await self._outage(context)
        return training_pb2.GetTrainingRunResponse(training_run=self.run())

    async def CancelTrainingRun(
        self, request: training_pb2.CancelTrainingRunRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.CancelTrainingRunResponse:
        self.cancelled.append(request.run_id)
        return training_pb2.CancelTrainingRunResponse(training_run=self.run())

    async def ListTrainingRuns(
        self, request: training_pb2.ListTrainingRunsRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.ListTrainingRunsResponse:
        return training_pb2.ListTrainingRunsResponse(training_runs=[self.run() for _ in range(len(self.states))])

    async def ListPolicies(
        self, request: training_pb2.ListPoliciesRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.ListPoliciesResponse:
        newer = self.newer_policies - int(request.page_token or 0)
        if newer > 0:
            policies = [training_pb2.Policy()] * min(newer, request.page_size)
            done = self.newer_policies - newer + len(policies)
            return training_pb2.ListPoliciesResponse(policies=policies, next_page_token=str(done))
        ref = type_pb2.PolicyRef(policy_id="policy-1", codebook_id="codebook-1")
        return training_pb2.ListPoliciesResponse(policies=[training_pb2.Policy(policy=ref, channels=self.channels)])

    async def ActivatePolicy(
        self, request: training_pb2.ActivatePolicyRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.ActivatePolicyResponse:
        if request.policy_id != "policy-1":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"policy_id: {request.policy_id!r}: give another")
        self.activated.append((request.policy_id, request.channel))
        ref = type_pb2.PolicyRef(policy_id=request.policy_id)
        return training_pb2.ActivatePolicyResponse(policy=training_pb2.Policy(policy=ref, channels=[request.channel]))

    async def RollBackPolicy(
        self, request: training_pb2.RollBackPolicyRequest, context: grpc.aio.ServicerContext
    ) -> training_pb2.RollBackPolicyResponse:
        self.rolled_back.append(request)
        if self.lost_answers:
            self.lost_answers -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        if request.channel != "stable":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"channel: {request.channel}: activate another")
        policy = training_pb2.Policy(policy=type_pb2.PolicyRef(policy_id="policy-0"), channels=["stable"])
        return training_pb2.RollBackPolicyResponse(policy=policy)


@asynccontextmanager
async def serving(double: TrainerDouble) -> AsyncIterator[str]:
    server = grpc.aio.server()
    training_pb2_grpc.add_TrainingServiceServicer_to_server(double, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextmanager
def serving_beside(double: TrainerDouble) -> Iterator[str]:
    """Serve from a thread, for commands that run a loop of their own."""
    ready, stop, found = threading.Event(), asyncio.Event(), []

    async def serve() -> None:
        async with serving(double) as address:
            found.append((address, asyncio.get_running_loop()))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    address, loop = found[0]
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


QUEUED = training_pb2.TRAINING_RUN_STATE_QUEUED
RUNNING = training_pb2.TRAINING_RUN_STATE_RUNNING
SUCCEEDED = training_pb2.TRAINING_RUN_STATE_SUCCEEDED
FAILED = training_pb2.TRAINING_RUN_STATE_FAILED


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "POLL_S", 0.02)


async def test_a_run_is_created_as_asked_and_watched_to_its_end() -> None:
    double, seen = TrainerDouble(QUEUED, RUNNING, RUNNING, SUCCEEDED), []
    async with serving(double) as address:
        run = await train_and_wait(
            address,
            data_folder=FOLDER,
            preset="demo",
            epochs=3,
            seed=9,
            channel="canary",
            request_id="mine",
            progress=lambda run: seen.append(run.state),
        )
    assert run.policy.policy_id == "policy-1"
    assert seen == [QUEUED, RUNNING, RUNNING, SUCCEEDED]
    assert double.requests == [
        training_pb2.CreateTrainingRunRequest(
            request_id="mine", data_folder=FOLDER, preset="demo", epochs=3, seed=9, channel="canary"
        )
    ]


async def test_runs_of_their_own_have_request_ids_of_their_own() -> None:
    double = TrainerDouble(SUCCEEDED)
    async with serving(double) as address:
        for _ in range(2):
            await train_and_wait(address, reward_log=training_pb2.RewardLogSource(cursor=4))
    first, second = double.requests
    assert first.request_id != second.request_id
    assert first.reward_log.cursor == 4


async def test_outages_are_waited_out() -> None:
    double = TrainerDouble(RUNNING, SUCCEEDED)
    double.outages = 12  # more than the channel itself retries
    reasons: list[str] = []
    async with serving(double) as address:
        run = await train_and_wait(address, data_folder=FOLDER, away=reasons.append)
    assert run.state == SUCCEEDED
    assert set(reasons) == {"restarting"}
    assert double.outages == 0


async def test_an_outage_too_long_is_told(free_port: Callable[[], int]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await train_and_wait(f"127.0.0.1:{free_port()}", data_folder=FOLDER, outage_s=0.0)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_failed_run_is_an_error_with_its_reason() -> None:
    async with serving(TrainerDouble(RUNNING, FAILED)) as address:
        with pytest.raises(TrainingRunError, match="run-1 failed: data_folder: nowhere: give another") as caught:
            await train_and_wait(address, data_folder=FOLDER)
    assert caught.value.run.state == FAILED


async def test_cancelling_the_wait_cancels_the_run() -> None:
    double, begun = TrainerDouble(RUNNING), asyncio.Event()
    async with serving(double) as address:
        waiting = asyncio.create_task(train_and_wait(address, data_folder=FOLDER, progress=lambda run: begun.set()))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert double.cancelled == ["run-1"]


def test_the_train_command_shows_the_policy_and_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double = TrainerDouble(RUNNING, SUCCEEDED)
    monkeypatch.chdir(tmp_path)
    with serving_beside(double) as address:
        arguments = ["train", "--data", "folder", "--holdout", "2", "--channel", "stable", "--address", address]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "policy policy-1, current in channel stable" in result.output
    assert "held_out_recall@10" in result.output
    assert double.requests[0].data_folder == training_pb2.DataFolderSource(
        path=str(tmp_path / "folder"), holdout_events=2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data, --log-cursor, --online: give one of them, or --list"),
        (["--data", ".", "--log-cursor", "0"], "--data, --log-cursor, --online: give one of them, or --list"),
        (["--log-cursor", "0", "--preset", "huge"], "preset: 'huge': choose another"),
        (["--log-cursor", "0"], "run-1 failed: data_folder: nowhere"),
    ],
)
def test_the_train_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    with serving_beside(TrainerDouble(FAILED)) as address:
        result = CliRunner().invoke(app, ["train", *arguments, "--address", address])
    assert result.exit_code == 1
    assert message in result.output


def test_an_online_run_starts_from_the_named_policy_at_the_cursor() -> None:
    double = TrainerDouble(FAILED)
    arguments = ["--online", "--start", "policy-7", "--log-cursor", "5", "--publish-lists", "9", "--channel", "canary"]
    arguments += ["--preference", "dpo"]
    with serving_beside(double) as address:
        CliRunner().invoke(app, ["train", *arguments, "--address", address])
    assert double.requests[0].online == training_pb2.OnlineSource(
        policy_id="policy-7", cursor=5, publish_lists=9, preference=training_pb2.PREFERENCE_DPO
    )
    assert double.requests[0].channel == "canary"


def test_an_online_run_starts_from_the_stable_policy_if_there_is_one() -> None:
    double = TrainerDouble(FAILED)
    with serving_beside(double) as address:
        CliRunner().invoke(app, ["train", "--online", "--address", address])
        double.channels = ["canary"]
        refused = CliRunner().invoke(app, ["train", "--online", "--address", address])
    assert [request.online for request in double.requests] == [
        training_pb2.OnlineSource(policy_id="policy-1", preference=training_pb2.PREFERENCE_RSPO)
    ]
    assert refused.exit_code == 1
    assert "channel stable has no policy to start from: train one first, or name one with --start" in refused.output


async def test_ctrl_c_cancels_the_run() -> None:
    double = TrainerDouble(RUNNING)
    program = "import typer; from gr4ad_tools.train import train_command; typer.run(train_command)"
    async with serving(double) as address:
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "--log-cursor", "0", "--address", address),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            while not double.requests:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            command.send_signal(signal.SIGINT)
            _, errors = await command.communicate()
    assert command.returncode == 130
    assert b"training run cancelled" in errors
    assert double.cancelled == ["run-1"]


def test_commands_list_and_activate() -> None:
    double = TrainerDouble(SUCCEEDED, FAILED)
    with serving_beside(double) as address:
        at = ["--address", address]
        runs = CliRunner().invoke(app, ["train", "--list", *at])
        policies = CliRunner().invoke(app, ["policy", "list", *at])
        activated = CliRunner().invoke(app, ["policy", "activate", "policy-1", "--channel", "canary", *at])
        refused = CliRunner().invoke(app, ["policy", "activate", "other", *at])
    assert runs.exit_code == policies.exit_code == activated.exit_code == 0
    first, second = runs.output.splitlines()
    assert ("succeeded" in first, "policy-1" in first) == (True, True)
    assert ("failed" in second, "give another" in second) == (True, True)
    assert "policy-1" in policies.output
    assert "canary, stable" in policies.output
    assert double.activated == [("policy-1", "canary")]
    assert activated.output == "policy-1 is current in canary\n"
    assert refused.exit_code == 1
    assert "policy_id: 'other'" in refused.output


def test_the_rollback_command_says_what_is_served_now() -> None:
    double = TrainerDouble(SUCCEEDED)
    with serving_beside(double) as address:
        rolled_back = CliRunner().invoke(app, ["policy", "rollback", "--address", address])
        refused = CliRunner().invoke(app, ["policy", "rollback", "--channel", "canary", "--address", address])
    assert rolled_back.exit_code == 0, rolled_back.output
    assert rolled_back.output == "policy-0 is current in stable; policy-1 was rolled back\n"
    assert refused.exit_code == 1
    assert "channel: canary: activate another" in refused.output
    assert [(request.channel, request.expected_policy_id) for request in double.rolled_back] == [
        ("stable", "policy-1"),
        ("canary", "policy-1"),
    ]


def test_a_rollback_whose_answer_is_lost_is_repeated_for_the_same_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    double = TrainerDouble(SUCCEEDED)
    double.lost_answers = 6  # more than the channel itself retries
    with serving_beside(double) as address:
        rolled_back = CliRunner().invoke(app, ["policy", "rollback", "--address", address])
        double.lost_answers = 1000
        monkeypatch.setattr(train, "OUTAGE_S", 0.0)
        lost = CliRunner().invoke(app, ["policy", "rollback", "--address", address])
    assert rolled_back.output == "policy-0 is current in stable; policy-1 was rolled back\n"
    assert {request.expected_policy_id for request in double.rolled_back} == {"policy-1"}
    assert lost.exit_code == 1
    assert "whether policy-1 was rolled back is not known: see `gr4ad policy list`" in lost.output


async def test_the_policy_of_a_channel_is_found_behind_any_number_of_newer_ones() -> None:
    double = TrainerDouble(SUCCEEDED)
    double.newer_policies = 2500
    async with serving(double) as address:
        assert await train.current_policy(address, "stable") == "policy-1"
        assert await train.current_policy(address, "fresh") == ""


def test_a_trainer_that_is_not_there_is_named(free_port: Callable[[], int]) -> None:
    address = f"127.0.0.1:{free_port()}"
    result = CliRunner().invoke(app, ["policy", "list", "--address", address])
    assert result.exit_code == 1
    assert address in result.output.replace("\n", "")
    assert "gr4ad up" in result.output.replace("\n", " ")
