"""A service is ready for as long as what it cannot do without answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gr4ad_runtime.app import Lifecycle
from gr4ad_runtime.errors import Gr4adError
from gr4ad_runtime.log import get_logger

PING_SECONDS = 2.0
_log = get_logger("readiness")


async def follow_readiness(
    lifecycle: Lifecycle, ping: Callable[[], Awaitable[None]], *, every_s: float = PING_SECONDS
) -> None:
    """Tell health whether a dependency answers, without end: a background task of the service.

    Args:
        lifecycle: Whose readiness is told.
        ping: Asks the dependency, as `Database.ping` does; raises a Gr4adError where it does not answer.
        every_s: Seconds between two looks.
    """
    while True:
        try:
            await ping()
            ready = True
        except Gr4adError as error:
            _log.warning("not ready", error=error.message)
            ready = False
        if ready != lifecycle.ready:
            lifecycle.set_ready(ready)
        await asyncio.sleep(every_s)
