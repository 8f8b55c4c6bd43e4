"""The wait between two attempts at what may be away."""

from __future__ import annotations

import asyncio
import random


async def back_off(wait_s: float) -> None:
    """Wait before the next attempt: half of `wait_s` to all of it, so that clients do not come back together.

    Raises:
        asyncio.CancelledError: This task was asked to end. A call that fails at the same moment tells its own failure
            and hides that, so that a loop of attempts would go on for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
