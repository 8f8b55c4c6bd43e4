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
        self._closed = False
        self._moved = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether readers have to end."""
        return self._closed

    def close(self) -> None:
        """Wake every reader to its end."""
        self._closed = True
        self._wake()

    async def wait_beyond(self, seq: int, timeout_s: float) -> bool:
        """Wait for changes after `seq`; False if there are none within `timeout_s` seconds or the watch is closed."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._end <= seq and not self._closed:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return not self._closed

    async def listen(self) -> None:
        """Follow the notifications, without end."""
        async for payload in self._database.listen(CHANNEL):
            self._advance(int(payload))

    async def poll(self) -> None:
        """Look at the database now and then, without end."""
        while True:
            try:
                async with self._database.session() as session:
                    self._advance(await feed_end(session))
            except Gr4adError as error:
                log.warning("feed_not_readable", error=str(error))
            await asyncio.sleep(self._poll_seconds)

    def _advance(self, end: int) -> None:
        if end > self._end:
            self._end = end
            self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
