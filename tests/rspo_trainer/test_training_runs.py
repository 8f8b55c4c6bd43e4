"""Runs over real gRPC: trained, published, cancelled, failed with a reason."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_core.learning.checkpoint import load_checkpoint
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import ResourceExhaustedError, UnavailableError
from gr4ad_runtime.telemetry import context_of
from opentelemetry.context import attach, detach
from rspo_trainer import policy_maker, worker
from rspo_trainer.models import RUNNING, TrainingRunRow
from rspo_trainer.run_queue import RunQueue
from rspo_trainer.settings import RspoTrainerSettings
from sqlalchemy import select, update

from tests.oracles.chain_folder import write_chain_folder
from tests.rspo_trainer.conftest import Trainer, running_trainer

QUEUED = training_pb2.TRAINING_RUN_STATE_QUEUED
RUNNING_STATE = training_pb2.TRAINING_RUN_STATE_RUNNING
SUCCEEDED = training_pb2.TRAINING_RUN_STATE_SUCCEEDED
FAILED = training_pb2.TRAINING_RUN_STATE_FAILED
CANCELLED = training_pb2.TRAINING_RUN_STATE_CANCELLED
ENDLESS = 2000  # epochs: a minute, reported every 40 steps


async def policies(trainer: Trainer) -> list[training_pb2.Policy]:
    return list((await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest())).policies)


def published(trainer: Trainer) -> list[str]:
    root = Path(trainer.settings.artifact_store)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def stored(database: Database, run_id: str) -> TrainingRunRow:
    async with database.session() as session:
        return (await session.scalars(select(TrainingRunRow).where(TrainingRunRow.run_id == run_id))).one()


async def begun(database: Database, run_id: str, attempt: int) -> None:
    async with asyncio.timeout(60):
        while (row := await stored(database, run_id)).attempt < attempt or row.state != RUNNING or row.step == 0:
            await asyncio.sleep(0.05)


async def test_a_run_trains_and_publishes_a_policy_that_loads(trainer: Trainer, tmp_path: Path) -> None:
    created = await trainer.create(channel="stable", epochs=20)
    assert created.state in (QUEUED, RUNNING_STATE)
    run = await trainer.end_of(created.run_id)
    assert (run.state, run.error) == (SUCCEEDED, "")
    assert run.step == run.total_steps > 0
    assert [point.step for point in run.losses] == sorted({point.step for point in run.losses})
    assert run.losses[-1].step == run.total_steps
    assert run.losses[-1].loss < 0.8 * run.losses[0].loss
    assert run.metrics["train_samples"] + run.metrics["held_out_samples"] == 40 * 7  # 10 − 2 held out − 1 first
    assert run.metrics["skipped_events"] == 0
    assert run.end_time.ToDatetime() >= run.create_time.ToDatetime()

    (policy,) = await policies(trainer)
    assert policy.policy == run.policy
    assert policy.channels == ["stable"]
    assert policy.metrics == run.metrics
    fetched = ArtifactStore(trainer.settings.artifact_store).fetch_folder(
        f"policies/{run.policy.policy_id}", tmp_path / "fetched"
    )
    model, manifest = load_checkpoint(fetched, "codebook", run.policy.sha256)
    assert manifest.policy_id == run.policy.policy_id
    assert model.config.level_sizes == (8, 8, 4)
    assert manifest.training_config["vsl"]["epochs"] == 20
    assert policy.uri.endswith(f"policies/{run.policy.policy_id}")


async def test_without_a_channel_a_policy_is_published_and_current_nowhere(trainer: Trainer) -> None:
    run = await trainer.end_of((await trainer.create(epochs=1)).run_id)
    assert run.state == SUCCEEDED
    assert [list(policy.channels) for policy in await policies(trainer)] == [[]]


async def test_the_same_request_is_the_same_run(trainer: Trainer) -> None:
    first = await trainer.create("once", epochs=1)
    again = await trainer.create("once", epochs=1)
    assert again.run_id == first.run_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer.create("once", epochs=2)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "request_id: 'once'" in (caught.value.details() or "")
    await trainer.end_of(first.run_id)
    assert (await trainer.create("once", epochs=1)).state == SUCCEEDED
    assert len(await policies(trainer)) == 1


async def test_held_out_events_reach_nothing(trainer: Trainer, tmp_path: Path) -> None:
    """The last two events of every user are of ads that occur nowhere else; with them held out nothing is skipped."""
    folder = write_chain_folder(tmp_path / "marked", 40)
    text = (folder / "interactions.csv").read_text()
    marked = re.sub(r",ad-\d+,([89]),", r",secret-\1,\1,", text)
    (folder / "interactions.csv").write_text(marked)
    with (folder / "items.jsonl").open("a") as items:
        items.writelines(json.dumps({"item_id": f"secret-{n}"}) + "\n" for n in (8, 9))
    source = training_pb2.DataFolderSource(path=str(folder), holdout_events=2)
    run = await trainer.end_of((await trainer.create("two", epochs=1, data_folder=source)).run_id)
    assert (run.state, run.metrics["skipped_events"]) == (SUCCEEDED, 0)
    source.holdout_events = 1
    run = await trainer.end_of((await trainer.create("one", epochs=1, data_folder=source)).run_id)
    assert (run.state, run.metrics["skipped_events"]) == (SUCCEEDED, 40)


async def test_a_run_of_a_codebook_that_is_not_registered_fails_with_its_name(trainer: Trainer) -> None:
    run = await trainer.end_of((await trainer.create("other", epochs=1, codebook_id="nonesuch")).run_id)
    assert run.state == FAILED
    assert "nonesuch" in run.error


async def test_runs_wait_for_each_other_and_cancel_queued_or_running(trainer: Trainer) -> None:
    first = await trainer.create("first", epochs=ENDLESS, channel="stable")
    second = await trainer.create("second", epochs=1)
    third = await trainer.create("third", epochs=1)
    running = await trainer.until(first.run_id, lambda run: run.step > 0)
    assert running.state == RUNNING_STATE
    assert running.total_steps == ENDLESS * -(-running.metrics.get("train_samples", 252) // 64)
    assert (await trainer.get(second.run_id)).state == QUEUED

    cancelled = await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=third.run_id))
    assert cancelled.training_run.state == CANCELLED
    await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=first.run_id))
    ended = await trainer.end_of(first.run_id)
    assert ended.state == CANCELLED
    assert not ended.HasField("policy")
    assert (await trainer.end_of(second.run_id)).state == SUCCEEDED
    again = await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=second.run_id))
    assert again.training_run.state == SUCCEEDED
    assert [policy.policy.policy_id for policy in await policies(trainer)] == [
        (await trainer.get(second.run_id)).policy.policy_id
    ]
    assert {path.split("/")[1] for path in published(trainer)} == {
        policy.policy.policy_id for policy in await policies(trainer)
    }


async def test_a_stopped_trainer_puts_its_run_back_and_a_crashed_one_is_settled_by_the_next(
    settings: RspoTrainerSettings, database: Database, tmp_path: Path
) -> None:
    folder = write_chain_folder(tmp_path / "data", 40)
    async with running_trainer(settings) as address, open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.CreateTrainingRunRequest(request_id="request", preset="tiny", epochs=ENDLESS)
        request.data_folder.path = str(folder)
        run_id = (await stub.CreateTrainingRun(request)).training_run.run_id
        await begun(database, run_id, 1)
    row = await stored(database, run_id)
    assert (row.state, row.attempt, row.crashes, row.step, row.loss_steps) == ("queued", 1, 0, 0, [])

    async with database.session() as session:
        await session.execute(update(TrainingRunRow).values(state=RUNNING, step=3))
    async with running_trainer(settings) as address, open_channel(address) as channel:
        await begun(database, run_id, 2)
        assert (await stored(database, run_id)).crashes == 1
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        await stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run_id))


async def test_a_run_that_another_process_took_over_is_left_alone(trainer: Trainer, database: Database) -> None:
    run = await trainer.create("taken", epochs=ENDLESS)
    await begun(database, run.run_id, 1)
    async with database.session() as session:
        await session.execute(update(TrainingRunRow).values(attempt=2, step=12345))
    assert (await trainer.end_of((await trainer.create("next", epochs=1)).run_id)).state == SUCCEEDED
    row = await stored(database, run.run_id)
    assert (row.state, row.attempt, row.step) == (RUNNING, 2, 12345)


async def test_a_run_that_stopped_the_trainer_too_often_fails(trainer: Trainer, database: Database) -> None:
    run = await trainer.end_of((await trainer.create(epochs=1)).run_id)
    async with database.session() as session:
        await session.execute(update(TrainingRunRow).values(state=RUNNING, crashes=1))
    async with running_trainer(trainer.settings):
        ended = await trainer.end_of(run.run_id)
    assert ended.state == FAILED
    assert "crashed 2 times" in ended.error


async def failure(trainer: Trainer, **values: object) -> str:
    run = await trainer.end_of((await trainer.create(epochs=1, channel="stable", **values)).run_id)
    assert run.state == FAILED
    assert not run.HasField("policy")
    assert await policies(trainer) == []
    return run.error


async def test_an_unknown_preset_names_those_there_are(trainer: Trainer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer.create(preset="huge")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "preset: 'huge': choose one of tiny, demo, default, or leave it empty"


async def test_a_missing_folder_fails_the_run(trainer: Trainer, tmp_path: Path) -> None:
    error = await failure(trainer, data_folder=training_pb2.DataFolderSource(path=str(tmp_path / "nowhere")))
    assert "folder" in error
    assert "nowhere" in error
    assert "give the path of an existing data folder" in error


async def test_a_bad_line_fails_the_run_by_file_and_line(trainer: Trainer) -> None:
    with (trainer.folder / "interactions.csv").open("a") as file:
        file.write("user-99,ad-0,0,,stare\n")
    error = await failure(trainer)
    assert "interactions.csv:402" in error
    assert "event_type" in error


async def test_a_holdout_that_leaves_nothing_fails_the_run(trainer: Trainer) -> None:
    error = await failure(
        trainer, data_folder=training_pb2.DataFolderSource(path=str(trainer.folder), holdout_events=16)
    )
    assert error.startswith("holdout_events: 16 leaves no event")


async def test_events_of_unknown_ads_are_skipped_and_counted(trainer: Trainer) -> None:
    del trainer.sids.entries[39]
    run = await trainer.end_of((await trainer.create(epochs=1)).run_id)
    assert run.state == SUCCEEDED
    assert run.metrics["skipped_events"] == 8


async def test_unknown_ads_only_fail_the_run(trainer: Trainer) -> None:
    for number, entry in enumerate(trainer.sids.entries):
        entry.ad_id = f"other-{number}"
    error = await failure(trainer)
    assert "none of an ad in the catalogue" in error
    assert "gr4ad ingest" in error


async def test_an_empty_catalogue_fails_the_run(trainer: Trainer) -> None:
    trainer.sids.entries.clear()
    assert "no ads" in await failure(trainer)


async def test_a_sid_service_that_is_away_for_a_moment_is_waited_for(trainer: Trainer) -> None:
    trainer.sids.fail_first = 2
    run = await trainer.end_of((await trainer.create(epochs=1)).run_id)
    assert (run.state, run.error) == (SUCCEEDED, "")


async def test_an_empty_reward_log_fails_the_run(trainer: Trainer) -> None:
    error = await failure(trainer, reward_log=training_pb2.RewardLogSource())
    assert error.startswith("reward_log: 0 lists, none with a click or a conversion")


async def test_no_disk_space_in_the_artifact_store_fails_the_run(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: ArtifactStore, local: Path, target: str) -> None:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArtifactStore, "_publish_local", full)
    error = await failure(trainer)
    assert "no disk space" in error
    assert "nothing was published" in error
    assert published(trainer) == []


async def test_no_disk_space_for_the_checkpoint_fails_the_run(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(policy_maker.tempfile, "TemporaryDirectory", full)
    error = await failure(trainer)
    assert "No space left on device" in error
    assert "nothing was published" in error


async def test_a_database_that_is_away_at_the_end_of_a_run_costs_nothing(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed, failures = (
        RunQueue.succeed,
        [UnavailableError("database", "gone", "wait"), ResourceExhaustedError("a", "b", "c")],
    )

    async def sometimes(self: RunQueue, *arguments: Any) -> bool:
        published = await succeed(self, *arguments)
        if failures:
            raise failures.pop()  # as if the connection were lost after the commit
        return published

    monkeypatch.setattr(RunQueue, "succeed", sometimes)
    run = await trainer.end_of((await trainer.create(epochs=1, channel="stable")).run_id)
    assert run.state == SUCCEEDED
    await asyncio.sleep(0.5)
    assert not failures
    assert [policy.policy for policy in await policies(trainer)] == [run.policy]


async def test_the_trace_of_the_request_leads_to_the_activation(trainer: Trainer) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    request = trainer.request(epochs=1, channel="stable")
    token = attach(context_of(f"00-{trace_id}-b7ad6b7169203331-01"))
    try:
        created = await trainer.stub.CreateTrainingRun(request)
    finally:
        detach(token)
    await trainer.end_of(created.training_run.run_id)
    watching = trainer.stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel="stable"))
    first = await watching.read()
    watching.cancel()
    assert first.traceparent.split("-")[1] == trace_id


async def test_a_crash_is_told_without_its_insides(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("deep down")

    log = Mock()
    monkeypatch.setattr(policy_maker, "save_checkpoint", crash)
    monkeypatch.setattr(worker, "log", log)
    error = await failure(trainer)
    assert error.startswith("internal error: RuntimeError")
    assert log.exception.call_args.kwargs["run_id"] in error


async def test_an_unknown_run_is_not_found(trainer: Trainer) -> None:
    for call in (
        trainer.stub.GetTrainingRun(training_pb2.GetTrainingRunRequest(run_id="nobody")),
        trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id="nobody")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "run_id: 'nobody'" in (caught.value.details() or "")


async def test_pages_of_runs_hold_each_run_once_the_newest_first(trainer: Trainer) -> None:
    blocker = await trainer.create("blocker", epochs=ENDLESS)
    created = [blocker.run_id] + [(await trainer.create(f"request-{n}", epochs=1)).run_id for n in range(4)]
    listed: list[str] = []
    token, pages = "", 0
    while True:
        request = training_pb2.ListTrainingRunsRequest(page_size=2, page_token=token)
        page = await trainer.stub.ListTrainingRuns(request)
        listed += [run.run_id for run in page.training_runs]
        assert all(not run.losses for run in page.training_runs)
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert pages == 3
    assert listed == created[::-1]
    whole = await trainer.stub.ListTrainingRuns(training_pb2.ListTrainingRunsRequest())
    assert [run.run_id for run in whole.training_runs] == listed
    for run_id in created:
        await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run_id))
    await asyncio.gather(*map(trainer.end_of, created))


@pytest.mark.parametrize("token", ["x", "AAAA", "cgAAAAAAAAAB!", "\0"])
async def test_a_bad_page_token_is_refused(trainer: Trainer, token: str) -> None:
    for call in (
        trainer.stub.ListTrainingRuns(training_pb2.ListTrainingRunsRequest(page_token=token)),
        trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest(page_token=token)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "page_token" in (caught.value.details() or "")
