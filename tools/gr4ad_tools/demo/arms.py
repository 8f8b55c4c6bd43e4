"""The two arms of the demo and what surrounds them: brought to a common beginning, and asked where they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import grpc
from gr4ad.generation.v1 import generation_pb2, generation_pb2_grpc
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_core.learning.data_folder import Item

from gr4ad_tools import train
from gr4ad_tools.split import CANARY, STABLE
from gr4ad_tools.up import Suite

GENERATORS = {STABLE: "ad_generator", CANARY: "ad_generator_canary"}
SWAP_WAIT_S = 60.0
SENDER_WAIT_S = 60.0
RPC_TIMEOUT_S = 10.0
POLL_S = 0.1
UPDATES_AT_ONCE = 32


async def begin_with(
    suite: Suite, channels: Mapping[str, grpc.aio.Channel], policy_id: str, items: Sequence[Item]
) -> None:
    """Bring both arms to one policy and all ads to the folder's states, whatever an interrupted run has left behind."""
    training = training_pb2_grpc.TrainingServiceStub(channels["rspo_trainer"])
    await _cancel_leftovers(training, suite.addresses["rspo_trainer"])
    for channel, process in GENERATORS.items():
        await training.ActivatePolicy(
            training_pb2.ActivatePolicyRequest(policy_id=policy_id, channel=channel), timeout=RPC_TIMEOUT_S
        )
        await suite.wait_ready(process)
        await until_served(channels[process], policy_id)
    sids = sid_pb2_grpc.SidServiceStub(channels["sid_assigner"])
    active = {item.item_id for item in items if item.state == "active"}
    paused = [
        entry.ad_id
        async for part in sids.ReadCatalog(sid_pb2.ReadCatalogRequest(until_current=True))
        for entry in part.entries
        if entry.state == sid_pb2.AD_STATE_PAUSED and entry.ad_id in active
    ]
    await update_ads(sids, [sid_pb2.UpdateAdRequest(ad_id=ad_id, state=sid_pb2.AD_STATE_ACTIVE) for ad_id in paused])


async def until_served(channel: grpc.aio.Channel, policy_id: str) -> None:
    """Wait until a generator serves a policy.

    Raises:
        TimeoutError: It does not in time.
    """
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = generation_pb2.GetEngineStatusRequest()
    async with asyncio.timeout(SWAP_WAIT_S):
        while True:
            status = await stub.GetEngineStatus(request, timeout=RPC_TIMEOUT_S, wait_for_ready=True)
            if status.policy.policy_id == policy_id:
                return
            await asyncio.sleep(POLL_S)


async def reward_summary(channel: grpc.aio.Channel) -> reward_pb2.GetRewardSummaryResponse:
    """Return what the reward log holds."""
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    request = reward_pb2.GetRewardSummaryRequest()
    return await stub.GetRewardSummary(request, timeout=RPC_TIMEOUT_S, wait_for_ready=True)


async def lists_handed_over(
    channels: Mapping[str, grpc.aio.Channel], few: int = 0
) -> list[generation_pb2.GetEngineStatusResponse]:
    """Wait until the generators have sent what they served, but a few lists each, to the log; return their states."""
    stubs = [generation_pb2_grpc.GenerationServiceStub(channels[name]) for name in GENERATORS.values()]
    request = generation_pb2.GetEngineStatusRequest()
    give_up = time.monotonic() + SENDER_WAIT_S
    while True:
        states = [await stub.GetEngineStatus(request, timeout=RPC_TIMEOUT_S, wait_for_ready=True) for stub in stubs]
        if all(status.lists_queued <= few for status in states) or time.monotonic() > give_up:
            return states
        await asyncio.sleep(POLL_S)


async def update_ads(sids: sid_pb2_grpc.SidServiceAsyncStub, changes: Sequence[sid_pb2.UpdateAdRequest]) -> None:
    """Make changes of ads, several at a time."""
    left = iter(changes)

    async def change() -> None:
        for request in left:
            await sids.UpdateAd(request, timeout=RPC_TIMEOUT_S)

    await asyncio.gather(*(change() for _ in range(UPDATES_AT_ONCE)))


async def _cancel_leftovers(training: training_pb2_grpc.TrainingServiceAsyncStub, address: str) -> None:
    """Cancel online runs of an interrupted demo; the trainer carries out one run at a time."""
    for run in await train.list_runs(address, 100):
        if run.state not in train.ENDED:
            await training.CancelTrainingRun(
                training_pb2.CancelTrainingRunRequest(run_id=run.run_id), timeout=RPC_TIMEOUT_S
            )
