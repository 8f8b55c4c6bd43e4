"""Calls on what may be away for a while, other services and the database: a run should outlive a restart of theirs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from gr4ad_runtime.log import get_logger

T = TypeVar("T")

AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 2.0

log = get_logger(__name__)


async def read_patiently(
    read: Callable[[], Awaitable[T]], *, service: str, address: str, variable: str, wait_s: float
) -> T:
    """Return what `read` returns, called again while the service is away.

    Args:
        read: Makes the calls; where it was cut off, it is called again.
        service: Name of the service, for messages.
        address: Where it is expected.
        variable: The setting that says so.
        wait_s: How long to try.

    Raises:
        UnavailableError: The service did not come back in time.
        FailedPreconditionError: It refuses.
    """
    give_up = time.monotonic() + wait_s
    pause_s = FIRST_WAIT_S
    while True:
        try:
            return await read()
        except grpc.aio.AioRpcError as error:
            what = f"{address} answers {error.code().name}: {error.details()}"
            if error.code() not in AWAY:
                raise FailedPreconditionError(service, what, "put that right and create the run anew") from error
            if time.monotonic() >= give_up:
                remedy = f"start it, or say in {variable} where it is, and create the run anew"
                raise UnavailableError(service, what, remedy) from error
            log.warning("dependency away", dependency=service, address=address, error=what)
        await back_off(pause_s)
        pause_s = min(2.0 * pause_s, LONGEST_WAIT_S)


async def write_persistently(write: Callable[[], Awaitable[T]]) -> T:
    """Repeat a transaction until the database takes it: it may be away, or out of space, for a while."""
    pause_s = FIRST_WAIT_S
    while True:
        try:
            return await write()
        except (UnavailableError, ResourceExhaustedError) as error:
            log.warning("database away", error=error.message)
        await back_off(pause_s)
        pause_s = min(2.0 * pause_s, LONGEST_WAIT_S)
