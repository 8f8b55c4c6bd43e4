"""What a reader may see while others write."""

from __future__ import annotations

import asyncio

from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.db import Database
from sqlalchemy import text

from tests.oracles.reward_messages import served_list


async def test_a_reader_never_passes_a_list_that_is_not_committed_yet(
    database: Database, stub: reward_pb2_grpc.RewardServiceAsyncStub
) -> None:
    """A writer that has taken its numbers and not committed keeps later writers, hence readers, behind it."""
    async with database.session() as session:
        await session.execute(text("UPDATE feed_head SET seq = seq + 1"))
        await session.execute(text("INSERT INTO list_feed VALUES (1, 'request-0')"))
        await session.execute(
            text("INSERT INTO served_list VALUES ('request-0', :message)"),
            {"message": served_list(0).SerializeToString()},
        )
        later = asyncio.ensure_future(
            stub.BatchCreateServedLists(reward_pb2.BatchCreateServedListsRequest(served_lists=[served_list(1)]))
        )
        await asyncio.sleep(0.3)
        assert not later.done()
        assert [part async for part in stub.ReadRewardedLists(reward_pb2.ReadRewardedListsRequest())] == []
    assert (await later).stored_count == 1
    parts = [part async for part in stub.ReadRewardedLists(reward_pb2.ReadRewardedListsRequest())]
    assert [r.served_list.request_id for part in parts for r in part.rewarded_lists] == ["request-0", "request-1"]
