"""The lists of an A/B split by arm, read from the reward log: what was shown of each, and what came of it.

Shapes: N lists of an arm.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import grpc
import numpy as np
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from numpy.typing import NDArray

from gr4ad_tools.bootstrap import UserSums
from gr4ad_tools.reward import MICROS

READ_TIMEOUT_S: Final = 600.0
PER_MILLE: Final = 1000.0

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """The lists of one channel.

    Attributes:
        users_N: The user of each, as a number; a list without a user id has a number of its own.
        impressions_N: Ads of it that were shown.
        clicks_N: Clicks on them.
        revenue_micros_N: What their advertisers pay.
        latency_us_N: Time from the request's arrival at the generator to the answer; 0 where it is not known.
    """

    users_N: IntArray
    impressions_N: IntArray
    clicks_N: IntArray
    revenue_micros_N: IntArray
    latency_us_N: IntArray

    @property
    def shown(self) -> int:
        """Lists of which any ad was shown."""
        return int(np.count_nonzero(self.impressions_N))

    @property
    def ctr_sums(self) -> UserSums:
        """Clicks and impressions by user."""
        return UserSums.of(self.users_N, self.clicks_N, self.impressions_N)

    @property
    def rpm_sums(self) -> UserSums:
        """Revenue in currency units and thousands of impressions, by user."""
        return UserSums.of(self.users_N, self.revenue_micros_N / MICROS, self.impressions_N / PER_MILLE)


class ArmLog:
    """Collects the lists of every channel, in the order they come.

    Attributes:
        cursor: Resume reading after it.
        lists_outside: Lists of no split, without a channel or a bucket; they are in no arm.
    """

    def __init__(self, cursor: int = 0) -> None:
        """Collect the lists after a cursor."""
        self.cursor = cursor
        self.lists_outside = 0
        self._rows: dict[str, list[tuple[int, int, int, int, int]]] = {}
        self._users: dict[str, int] = {}
        self._numbers = itertools.count()

    def add(self, rewarded: reward_pb2.RewardedList) -> None:
        """Take one list with its outcomes."""
        served, outcomes = rewarded.served_list, rewarded.outcomes
        if not served.channel or not served.HasField("bucket"):
            self.lists_outside += 1
            return
        number, user_id = next(self._numbers), served.user_context.user_id
        row = (
            self._users.setdefault(user_id, number) if user_id else number,
            sum(outcome.impression_count for outcome in outcomes),
            sum(outcome.click_count for outcome in outcomes),
            sum(outcome.revenue_micros for outcome in outcomes),
            served.latency_us,
        )
        self._rows.setdefault(served.channel, []).append(row)

    @property
    def lists(self) -> dict[str, int]:
        """Number of lists by channel."""
        return {channel: len(rows) for channel, rows in self._rows.items()}

    def arm(self, channel: str) -> Arm:
        """Return the lists of a channel."""
        return Arm(*np.array(self._rows.get(channel, []), dtype=np.int64).reshape(-1, 5).T)


async def read_arms(channel: grpc.aio.Channel, cursor: int = 0) -> ArmLog:
    """Read the reward log up to the present.

    Args:
        channel: To the reward logger, as `open_channel` makes it.
        cursor: Start after it.

    Raises:
        grpc.aio.AioRpcError: The log does not answer, or has no such cursor.
    """
    log = ArmLog(cursor)
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    async for part in stub.ReadRewardedLists(
        reward_pb2.ReadRewardedListsRequest(cursor=cursor), timeout=READ_TIMEOUT_S
    ):
        for rewarded in part.rewarded_lists:
            log.add(rewarded)
        log.cursor = part.cursor
    return log
