"""A channel without retries, tracing or deadlines, for tests that look at one call as it is."""

from __future__ import annotations

import grpc


def plain_channel(address: str) -> grpc.aio.Channel:
    """Open a channel with a connection of its own, not one that a test before lost when it had this address."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
