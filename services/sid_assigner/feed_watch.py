"""How far the catalogue feed goes, as this process knows it; one watch wakes every reader of the process."""

from __future__ import annotations

import asyncio

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import Gr4adError
from gr4ad_runtime.log import get_logger

from sid_assigner.catalog_feed import CHANNEL, feed_end

log = get_logger(__name__)


class FeedWatch:
    """Follows the end of the feed by notifications, and by looking now and then in case one was lost."""

    def __init__(self, database: Database, poll_seconds: float) -> None:
        """Watch the feed of `database`, looking every `poll_seconds`."""
        self._database = database
        self._poll_seconds = poll_seconds
        self._end = 0
        self._moved = asyncio.Event()

    async def wait_beyond(self, seq: int, timeout_s: float) -> bool:
        """Wait for changes after `seq`; False if there are none within `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._end <= seq:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def follow(self) -> None:
        """Follow the feed, without end."""
        async for payload in self._database.listen(CHANNEL, idle_seconds=self._poll_seconds):
            if payload:
                self._advance(int(payload))
                continue
            try:
                async with self._database.session() as session:
                    self._advance(await feed_end(session))
            except Gr4adError as error:
                log.warning("feed not readable", error=error.message)

    def _advance(self, end: int) -> None:
        if end > self._end:
            self._end = end
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()
