"""How a request came, apart from what it asks: when, with how much time left, and from which bucket of an A/B split."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from gr4ad_runtime.errors import InvalidArgumentError

Context = grpc.aio.ServicerContext[Any, Any]

BUCKET_HEADER: Final = "gr4ad-bucket"
"""Header (gRPC metadata, or HTTP's on the REST server) in which a caller that splits its users names the user's bucket.

An integer from 0 to 99. It is logged with the served list and changes no answer: the caller has chosen the generator.
"""
BUCKET: Final = re.compile("[0-9]{1,2}")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request's arrival.

    Attributes:
        at: When, on `time.monotonic`'s clock.
        time_remaining_s: Until the call's own deadline; None where it has none.
        bucket: The user's bucket in an A/B split, 0 to 99; None where the caller sent none.
        test: Whether nobody will be shown what is answered, so that it must not be logged.
    """

    at: float
    time_remaining_s: float | None = None
    bucket: int | None = None
    test: bool = False

    @classmethod
    def of_call(cls, context: Context) -> Arrival:
        """Describe a gRPC call that arrives now.

        Raises:
            InvalidArgumentError: Its bucket is none.
        """
        values = [str(value) for key, value in context.invocation_metadata() or () if key == BUCKET_HEADER]
        return cls(time.monotonic(), context.time_remaining(), parse_bucket(values))

    @classmethod
    def of_headers(cls, headers: Mapping[str, str]) -> Arrival:
        """Describe an HTTP request that arrives now, by its headers in lower case.

        Raises:
            InvalidArgumentError: Its bucket is none.
        """
        return cls(time.monotonic(), bucket=parse_bucket([headers[BUCKET_HEADER]] if BUCKET_HEADER in headers else []))

    def elapsed_us(self) -> int:
        """Return the time since then, in microseconds, rounded up: 0 would mean that it is not known."""
        return int((time.monotonic() - self.at) * 1e6) + 1


def parse_bucket(values: Sequence[str]) -> int | None:
    """Read the bucket from the header's values; None where there is none.

    Raises:
        InvalidArgumentError: It is no integer from 0 to 99, or was sent more than once.
    """
    if not values:
        return None
    value = ", ".join(values)
    if not BUCKET.fullmatch(value):
        raise InvalidArgumentError(
            BUCKET_HEADER, value, "send the user's bucket once, an integer from 0 to 99, or leave the header out"
        )
    return int(value)
