"""The reward log as a stream that goes on: what is new since a cursor, asked for again and again."""

from __future__ import annotations

import asyncio
import time

import grpc
from google.protobuf.duration_pb2 import Duration
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.errors import UnavailableError
from gr4ad_runtime.log import get_logger

from rspo_trainer.catalogue import STREAM_TIMEOUT_S
from rspo_trainer.dependency import read_patiently
from rspo_trainer.settings import RspoTrainerSettings

POLL_S = 1.0

log = get_logger(__name__)


class RewardStream:
    """Reads rewarded lists in order, each once.

    Attributes:
        cursor: Of the last list that `read` returned.
    """

    def __init__(
        self, channel: grpc.aio.Channel, cursor: int, settings: RspoTrainerSettings, patience_s: float
    ) -> None:
        """Go on after `cursor`, leaving out lists that have not had time for outcomes.

        A log that is away is waited for, `patience_s` at a time.
        """
        self.cursor = cursor
        self._patience_s = patience_s
        self._stub = reward_pb2_grpc.RewardServiceStub(channel)
        self._settings = settings

    async def read(self, enough: int, wait_s: float) -> list[reward_pb2.RewardedList]:
        """Return what is new: about `enough` lists, or what there is after `wait_s`, or once the log is away.

        Raises:
            FailedPreconditionError: It refuses, say since the cursor is none of its.
        """
        lists: list[reward_pb2.RewardedList] = []
        give_up = time.monotonic() + wait_s
        while True:
            try:
                await read_patiently(
                    lambda: self._read_new(lists, enough),
                    service="reward_logger",
                    address=self._settings.reward_logger_address,
                    variable="GR4AD_REWARD_LOGGER_ADDRESS",
                    wait_s=self._patience_s,
                )
            except UnavailableError as error:
                log.warning("learning waits for the log", error=error.message)
                return lists  # the cursor has passed them: nobody would read them again
            if len(lists) >= enough or time.monotonic() >= give_up:
                return lists
            await asyncio.sleep(POLL_S)

    async def _read_new(self, lists: list[reward_pb2.RewardedList], enough: int) -> None:
        request = reward_pb2.ReadRewardedListsRequest(
            cursor=self.cursor, min_age=_duration(self._settings.outcome_wait_seconds)
        )
        parts = self._stub.ReadRewardedLists(request, timeout=STREAM_TIMEOUT_S)
        async for part in parts:
            lists.extend(part.rewarded_lists)
            self.cursor = part.cursor
            if len(lists) >= enough:
                parts.cancel()
                return


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(1e9 * seconds))
    return duration
