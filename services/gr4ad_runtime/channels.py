"""Channels to other services: traced, kept alive, retried; and endless streams that outlive their server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TypeVar

import grpc

from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.client_interceptors import StreamCallInterceptor, UnaryCallInterceptor
from gr4ad_runtime.log import get_logger

Message = TypeVar("Message")

MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_DEADLINE_S = 30.0
# Errors that another attempt cannot mend.
FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
# Every write carries a request_id or is idempotent, a roll-back by the policy it states: a repeated call is safe.
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Stops retries while most calls fail, so that they do not hold down a server that comes up.
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}
_log = get_logger("channels")


def open_channel(address: str, *, deadline_s: float = DEFAULT_DEADLINE_S) -> grpc.aio.Channel:
    """Open a channel; it connects at the first call and again after a loss.

    Args:
        address: host:port.
        deadline_s: Deadline of unary calls that state none.
    """
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            ("grpc.enable_retries", 1),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # A connection of its own: else one that another channel of this process lost, when some other server had
            # this address, would still be waiting to try again, and this one's first calls would fail with it.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
        ],
        interceptors=[UnaryCallInterceptor(deadline_s), StreamCallInterceptor()],
    )


async def reconnect(
    open_stream: Callable[[], AsyncIterable[Message]],
    *,
    name: str,
    silence_s: float | None = None,
    first_wait_s: float = 0.1,
    longest_wait_s: float = 5.0,
    final: frozenset[grpc.StatusCode] = FINAL,
) -> AsyncIterator[Message]:
    """Read a stream that should never end, opening it anew whenever it does.

    Args:
        open_stream: Makes the call. It is called for every attempt, so that it can resume from the latest cursor.
        name: What the log calls the stream.
        silence_s: Longest time between two messages before the stream is given up; None where there are no heartbeats.
        first_wait_s: Wait before the second attempt; doubled for each one after it, with jitter, until a message comes.
        longest_wait_s: Longest wait.
        final: Statuses that end the reading.

    Yields:
        The messages of all attempts.

    Raises:
        grpc.aio.AioRpcError: The stream ended with a status in `final`.
    """
    attempt = 0
    while True:
        reason = "ended by the server"
        stream = open_stream()
        messages = aiter(stream)
        try:
            while True:
                message = await asyncio.wait_for(anext(messages), silence_s)
                attempt = 0
                yield message
        except StopAsyncIteration:
            pass
        except TimeoutError:
            reason = f"silent for {silence_s} s"
        except grpc.aio.AioRpcError as error:
            if error.code() in final:
                raise
            reason = f"{error.code().name}: {error.details()}"
        finally:
            # A call that is dropped half-way would otherwise go on until it is collected.
            cancel = getattr(stream, "cancel", None)
            if cancel is not None:
                cancel()
        wait_s = min(longest_wait_s, first_wait_s * 2.0**attempt)
        _log.warning("stream lost", stream=name, reason=reason, attempt=attempt, wait_s=round(wait_s, 3))
        attempt = min(attempt + 1, 16)
        await back_off(wait_s)
