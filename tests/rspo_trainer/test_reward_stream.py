"""The reward log as a stream: what was received before the log went away is not lost with it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.channels import open_channel
from gr4ad_runtime.settings import ServiceSettings
from rspo_trainer.reward_stream import RewardStream
from rspo_trainer.settings import RspoTrainerSettings

from tests.rspo_trainer.conftest import serving


class LeavingLog(reward_pb2_grpc.RewardServiceServicer):
    """Sends one list, breaks off, and refuses calls until it is back; then it goes on after the cursor."""

    def __init__(self) -> None:
        self.calls = 0
        self.back = False

    async def ReadRewardedLists(
        self, request: reward_pb2.ReadRewardedListsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[reward_pb2.ReadRewardedListsResponse]:
        self.calls += 1
        if self.calls == 1 or self.back:
            seq = request.cursor + 1
            rewarded = reward_pb2.RewardedList(served_list=reward_pb2.ServedList(request_id=f"r{seq}"))
            yield reward_pb2.ReadRewardedListsResponse(rewarded_lists=[rewarded], cursor=seq)
        if not self.back:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")


async def test_lists_received_before_the_log_went_away_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rspo_trainer.reward_stream.POLL_S", 0.01)
    log = LeavingLog()

    async def build(server: grpc.aio.Server, lifecycle: object) -> None:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(log, server)

    async with serving(ServiceSettings(), build) as address, open_channel(address) as channel:
        stream = RewardStream(channel, 0, RspoTrainerSettings(reward_logger_address=address), patience_s=0.2)
        assert [each.served_list.request_id for each in await stream.read(2, 0.0)] == ["r1"]
        assert await stream.read(2, 0.0) == []
        assert stream.cursor == 1
        log.back = True
        assert [each.served_list.request_id for each in await stream.read(1, 0.0)] == ["r2"]
