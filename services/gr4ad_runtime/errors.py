"""Errors a caller can act on.

    Gr4adError                  INTERNAL
    ├── InvalidArgumentError    INVALID_ARGUMENT      the request is wrong in itself
    ├── NotFoundError           NOT_FOUND             a named thing does not exist
    ├── AlreadyExistsError      ALREADY_EXISTS        a named thing exists and differs
    ├── FailedPreconditionError FAILED_PRECONDITION   the system must change first
    │   └── AddressInUseError                         a port is taken; ends the process with exit code 2
    ├── OutOfRangeError         OUT_OF_RANGE          past a valid range, such as an expired cursor
    ├── ResourceExhaustedError  RESOURCE_EXHAUSTED    no disk space, no quota, a full queue
    ├── AbortedError            ABORTED               lost a race; repeat the whole transaction
    ├── UnavailableError        UNAVAILABLE           a dependency is down; repeat the call
    ├── DeadlineExceededError   DEADLINE_EXCEEDED     the time given did not suffice
    └── DataLossError           DATA_LOSS             stored data is damaged

Each names a field, its value and a remedy. `interceptors.ErrorInterceptor` is the only place that turns them into
gRPC statuses.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

MAX_VALUE_CHARS = 160


class Gr4adError(Exception):
    """Base of every error with a message that is fit for a caller.

    Attributes:
        code: The gRPC status of the class.
        message: What is wrong and what helps.
        field: The field, file or resource at fault; empty where none is.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    field: str = ""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class FieldError(Gr4adError):
    """An error of one field: its message names the field, the value and the remedy."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{field}: {shorten(value)}: {remedy}")
        self.field = field
        self.value = value
        self.remedy = remedy


class InvalidArgumentError(FieldError):
    """The request is wrong in itself, whatever the state of the system.

    Attributes:
        violations: (field, what is wrong) of every field at fault, where several are known.
    """

    code = grpc.StatusCode.INVALID_ARGUMENT
    violations: tuple[tuple[str, str], ...] = ()


class NotFoundError(FieldError):
    """A thing the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(FieldError):
    """A thing the request would create exists, and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(FieldError):
    """The system must be brought into another state first."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AddressInUseError(FailedPreconditionError):
    """Another process listens on the address."""


class OutOfRangeError(FieldError):
    """A position lies past the valid range."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhaustedError(FieldError):
    """Something is used up: disk space, connections, a queue.

    Attributes:
        retry_after_s: Seconds after which another attempt may succeed; None where that is not known.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, field: str, value: object, remedy: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(field, value, remedy)
        self.retry_after_s = retry_after_s


class AbortedError(FieldError):
    """The operation lost a race; repeat it as a whole."""

    code = grpc.StatusCode.ABORTED


class UnavailableError(FieldError):
    """A dependency is down for the moment; repeat the call."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(FieldError):
    """The time given did not suffice."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class DataLossError(FieldError):
    """Stored data is damaged."""

    code = grpc.StatusCode.DATA_LOSS


def shorten(value: object) -> str:
    """Return `value` as text of at most 160 characters; an empty one as `(empty)`."""
    text = str(value)
    if len(text) > MAX_VALUE_CHARS:
        return f"{text[: MAX_VALUE_CHARS - 1]}…"
    return text or "(empty)"
