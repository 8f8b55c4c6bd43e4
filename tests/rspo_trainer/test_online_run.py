"""Online runs: learn from the log as it grows, publish what passes the gate, go on at their cursor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.publish_gate import GateLimits
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.db import Database
from gr4ad_runtime.telemetry import context_of
from opentelemetry.context import attach, detach
from rspo_trainer import online_session, online_trainer
from rspo_trainer.models import CANCELLED, QUEUED, TrainingRunRow
from rspo_trainer.online_lists import is_held_out
from sqlalchemy import update

from tests.rspo_trainer.conftest import ADS, Trainer, running_trainer
from tests.rspo_trainer.policies import activate

SHOWN, RETURNED = 4, 8
RESPONSE_RATE = 0.5
PUBLISH_LISTS = 64


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_trainer, "ROUND_WAIT_S", 0.2)
    monkeypatch.setattr("rspo_trainer.reward_stream.POLL_S", 0.05)


def user_of(number: int) -> str:
    return f"user-{number}"


async def serve_lists(rewards: reward_pb2_grpc.RewardServiceAsyncStub, numbers: Iterable[int]) -> None:
    """Put served lists of the canary's policy into the log, with impressions and clicks drawn by number."""
    lists, impressions, clicks = [], [], []
    for number in numbers:
        rng = np.random.default_rng(number)
        request_id = f"request-{number}"
        ads = rng.permutation(ADS)[:RETURNED]
        lists.append(
            reward_pb2.ServedList(
                request_id=request_id,
                user_context=type_pb2.UserContext(user_id=user_of(number), cold_start=True),
                candidates=[
                    type_pb2.ScoredAd(
                        ad_id=f"ad-{ad}", sid=type_pb2.SemanticId(codes=[0, 0, 0]), log_prob=-4.0 - rng.random()
                    )
                    for ad in ads
                ],
                policy=type_pb2.PolicyRef(policy_id="policy", codebook_id="codebook", sha256="0" * 64),
                serve_time=Timestamp(seconds=1000 + number),
                channel="canary",
            )
        )
        for place, ad in enumerate(ads[:SHOWN]):
            event = {
                "event_id": f"{request_id}-{place}",
                "request_id": request_id,
                "ad_id": f"ad-{ad}",
                "event_time": Timestamp(seconds=1001 + number),
            }
            impressions.append(reward_pb2.Impression(position=place, **event))
            if rng.random() < RESPONSE_RATE:
                clicks.append(reward_pb2.Feedback(type=reward_pb2.FEEDBACK_TYPE_CLICK, **event))
    await rewards.BatchCreateImpressions(reward_pb2.BatchCreateImpressionsRequest(impressions=impressions))
    await rewards.BatchCreateFeedback(reward_pb2.BatchCreateFeedbackRequest(feedback=clicks))
    await rewards.BatchCreateServedLists(reward_pb2.BatchCreateServedListsRequest(served_lists=lists))


async def start(trainer: Trainer, publish_lists: int = PUBLISH_LISTS, **values: object) -> training_pb2.TrainingRun:
    """Train a policy, and create an online run that starts from it."""
    policy = (await trainer.end_of((await trainer.create("first", epochs=1)).run_id)).policy
    source = training_pb2.OnlineSource(policy_id=policy.policy_id, publish_lists=publish_lists)
    return await trainer.create("online", online=source, preset="", channel="canary", **values)


async def canary(trainer: Trainer, after: int = 0) -> training_pb2.WatchPoliciesResponse:
    """Wait for the channel's next policy."""
    watching = trainer.stub.WatchPolicies(training_pb2.WatchPoliciesRequest(channel="canary"))
    async with asyncio.timeout(60.0):
        async for answer in watching:
            if answer.HasField("policy") and answer.policy.metrics.get("lists", 0.0) > after:
                watching.cancel()
                return answer
    raise AssertionError("the stream ended")


def reached(cursor: int) -> Callable[[training_pb2.TrainingRun], bool]:
    return lambda run: run.cursor >= cursor


async def test_a_run_learns_publishes_and_goes_on_until_it_is_cancelled(trainer: Trainer) -> None:
    run = await start(trainer)
    await serve_lists(trainer.rewards, range(200))
    first = (await canary(trainer)).policy
    assert first.policy.policy_id.startswith("online-")
    assert first.policy.codebook_id == "codebook"
    await serve_lists(trainer.rewards, range(200, 400))
    second = (await canary(trainer, after=200)).policy
    assert second.policy.sha256 != first.policy.sha256
    for name in ("drift", "calibration", "held_out_recall@10", "held_out_lists"):
        assert name in second.metrics, name
    assert second.metrics["drift"] > 0.0
    await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run.run_id))
    ended = await trainer.end_of(run.run_id)
    assert ended.state == training_pb2.TRAINING_RUN_STATE_CANCELLED
    assert ended.cursor == 400
    assert ended.metrics["lists"] == 400
    assert ended.metrics["learned_lists"] + ended.metrics["held_out_lists"] == 400
    assert 0 < ended.metrics["held_out_lists"] < 100
    assert ended.metrics["published"] >= 2
    assert ended.step > 5
    assert len(ended.losses) > 1
    policies = (await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest())).policies
    assert len(policies) == 1 + ended.metrics["published"]


async def test_the_publication_after_a_roll_back_becomes_current_as_usual(trainer: Trainer) -> None:
    """The run goes on from where it is; to roll its next policy back passes over the one rolled back before."""
    run = await start(trainer, publish_lists=150)
    listed = await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest())
    base = listed.policies[0].policy.policy_id
    await activate(trainer, base, "canary")
    await serve_lists(trainer.rewards, range(200))
    learned = (await canary(trainer)).policy
    await trainer.until(run.run_id, reached(200))  # the next publication is at 300 lists
    back = training_pb2.RollBackPolicyRequest(channel="canary", expected_policy_id=learned.policy.policy_id)
    assert (await trainer.stub.RollBackPolicy(back)).policy.policy.policy_id == base
    await serve_lists(trainer.rewards, range(200, 400))
    later = (await canary(trainer, after=int(learned.metrics["lists"]))).policy
    assert later.policy.policy_id not in (base, learned.policy.policy_id)
    assert later.channels == ["canary"]
    assert later.metrics["published"] == 1.0, "it counts the one that was rolled back"
    back.expected_policy_id = later.policy.policy_id
    assert (await trainer.stub.RollBackPolicy(back)).policy.policy.policy_id == base


async def test_a_new_process_goes_on_at_the_cursor_and_learns_nothing_twice(
    trainer: Trainer, database: Database
) -> None:
    run = await start(trainer)
    await serve_lists(trainer.rewards, range(150))
    await trainer.until(run.run_id, reached(150))
    async with database.session() as session:  # as a process leaves it that is killed
        await session.execute(update(TrainingRunRow).where(TrainingRunRow.run_id == run.run_id).values(attempt=99))
    await serve_lists(trainer.rewards, range(150, 300))
    async with asyncio.timeout(60.0):  # what the old process writes from now on does not count
        while (await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest(page_size=1))).policies[0].metrics.get(
            "lists", 0.0
        ) > 150:
            await asyncio.sleep(0.05)
    async with running_trainer(trainer.settings) as address, open_channel(address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        await trainer.until(run.run_id, reached(300))
        await stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run.run_id))
        ended = await trainer.end_of(run.run_id)
    assert ended.state == training_pb2.TRAINING_RUN_STATE_CANCELLED
    assert ended.metrics["lists"] == 300
    async with database.session() as session:
        row = await session.get_one(TrainingRunRow, run.run_id)
    assert (row.state, row.crashes, row.cursor) == (CANCELLED, 0, 300)


async def test_a_new_process_measures_on_the_lists_that_were_held_out_before(
    trainer: Trainer, database: Database
) -> None:
    run = await start(trainer)
    await serve_lists(trainer.rewards, range(150))
    await trainer.until(run.run_id, reached(150))
    await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run.run_id))
    assert (await trainer.end_of(run.run_id)).metrics["held_out_lists"] >= 10
    async with database.session() as session:  # as a process leaves it that was stopped, not cancelled
        queued = {"state": QUEUED, "cancel_requested": False, "end_time": None}
        await session.execute(update(TrainingRunRow).where(TrainingRunRow.run_id == run.run_id).values(**queued))
    learned_from = [n for n in range(150, 300) if not is_held_out(list_of(user_of(n)))]
    async with running_trainer(trainer.settings):
        await serve_lists(trainer.rewards, learned_from)
        assert (await canary(trainer, after=150)).policy.metrics["drift"] > 0.0


def list_of(user_id: str) -> reward_pb2.ServedList:
    return reward_pb2.ServedList(user_context=type_pb2.UserContext(user_id=user_id))


@pytest.mark.parametrize("other_settings", [{"dependency_wait_seconds": 0.1}])
async def test_a_catalogue_that_is_away_for_long_is_waited_for(trainer: Trainer) -> None:
    policy = (await trainer.end_of((await trainer.create("first", epochs=1)).run_id)).policy
    trainer.sids.fail_first = 8
    source = training_pb2.OnlineSource(policy_id=policy.policy_id, publish_lists=PUBLISH_LISTS)
    await trainer.create("online", online=source, preset="", channel="canary")
    await serve_lists(trainer.rewards, range(200))
    assert (await canary(trainer)).policy.policy.policy_id.startswith("online-")
    assert trainer.sids.fail_first == 0


async def test_a_run_ends_with_its_reason_once_its_codebook_is_retired(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_trainer, "CATALOGUE_S", 0.0)
    run = await start(trainer)
    await serve_lists(trainer.rewards, range(200))
    published = (await canary(trainer)).policy
    trainer.sids.retired = True
    await serve_lists(trainer.rewards, range(200, 400))
    ended = await trainer.end_of(run.run_id)
    assert ended.state == training_pb2.TRAINING_RUN_STATE_FAILED
    assert "'codebook' is retired" in ended.error
    policies = (await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest())).policies
    assert published.policy in [policy.policy for policy in policies], "what was published stays"


@pytest.mark.parametrize("other_settings", [{"publish_seconds": 0.5}])
async def test_few_lists_are_published_too_once_the_time_has_come(trainer: Trainer) -> None:
    run = await start(trainer, publish_lists=10_000)
    await serve_lists(trainer.rewards, range(100))
    first = await canary(trainer)
    assert 0 < first.policy.metrics["lists"] <= 100
    await trainer.until(run.run_id, reached(100))
    # What has not changed since is not published again.
    published = (await trainer.until(run.run_id, lambda seen: seen.metrics["lists"] >= 100)).metrics["published"]
    await asyncio.sleep(1.5)
    await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run.run_id))
    assert (await trainer.end_of(run.run_id)).metrics["published"] <= published + 1


async def test_only_the_latest_state_is_kept(trainer: Trainer) -> None:
    run = await start(trainer)
    await serve_lists(trainer.rewards, range(100))
    await trainer.until(run.run_id, reached(100))
    await serve_lists(trainer.rewards, range(100, 200))
    await trainer.until(run.run_id, reached(200))
    await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run.run_id))
    await trainer.end_of(run.run_id)
    assert len(ArtifactStore(trainer.settings.artifact_store).list_names("online")) == 1


async def test_a_run_by_dpo_says_so_in_what_it_publishes(trainer: Trainer) -> None:
    policy = (await trainer.end_of((await trainer.create("first", epochs=1)).run_id)).policy
    source = training_pb2.OnlineSource(
        policy_id=policy.policy_id, publish_lists=PUBLISH_LISTS, preference=training_pb2.PREFERENCE_DPO
    )
    await trainer.create("online", online=source, preset="", channel="canary")
    await serve_lists(trainer.rewards, range(200))
    published = (await canary(trainer)).policy.policy.policy_id
    store = ArtifactStore(trainer.settings.artifact_store)
    folder = store.fetch_folder(f"policies/{published}", trainer.folder.parent / "fetched")
    assert json.loads((folder / "manifest.json").read_text())["training_config"]["preference"] == "dpo"


async def test_a_policy_that_the_gate_refuses_is_dropped(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_session, "GateLimits", lambda: GateLimits(drift=1e-9))
    run = await start(trainer)
    await serve_lists(trainer.rewards, range(200))
    seen = await trainer.until(run.run_id, lambda run: run.metrics.get("refused", 0.0) >= 1.0)
    assert seen.metrics["published"] == 0.0
    await trainer.stub.CancelTrainingRun(training_pb2.CancelTrainingRunRequest(run_id=run.run_id))
    await trainer.end_of(run.run_id)
    assert len((await trainer.stub.ListPolicies(training_pb2.ListPoliciesRequest())).policies) == 1


async def test_the_trace_of_an_outcome_leads_to_the_activation(trainer: Trainer) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    await start(trainer)
    token = attach(context_of(f"00-{trace_id}-b7ad6b7169203331-01"))
    try:
        await serve_lists(trainer.rewards, range(100))
    finally:
        detach(token)
    assert (await canary(trainer)).traceparent.split("-")[1] == trace_id


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        ({"channel": ""}, grpc.StatusCode.INVALID_ARGUMENT, "channel: '': an online run publishes as it learns"),
        ({"preset": "tiny"}, grpc.StatusCode.INVALID_ARGUMENT, "preset, epochs: 'tiny', 0: leave them out"),
        ({}, grpc.StatusCode.NOT_FOUND, "policy_id: 'nobody': give one that `gr4ad policy list` shows"),
    ],
)
async def test_a_bad_request_is_refused(
    trainer: Trainer, values: dict[str, str], code: grpc.StatusCode, message: str
) -> None:
    source = training_pb2.OnlineSource(policy_id="nobody")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer.create(online=source, **{"preset": "", "channel": "canary", **values})
    assert caught.value.code() is code
    assert (caught.value.details() or "").startswith(message)


async def test_a_cursor_beyond_the_log_fails_the_run(trainer: Trainer) -> None:
    policy = (await trainer.end_of((await trainer.create("first", epochs=1)).run_id)).policy
    source = training_pb2.OnlineSource(policy_id=policy.policy_id, cursor=1_000_000)
    run = await trainer.end_of((await trainer.create("online", online=source, preset="", channel="canary")).run_id)
    assert run.state == training_pb2.TRAINING_RUN_STATE_FAILED
    assert "cursor" in run.error
