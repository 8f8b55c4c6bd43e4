"""Machine-readable details of an error's status, in the form of google.rpc.Status."""

from __future__ import annotations

from datetime import timedelta

from google.rpc import error_details_pb2, status_pb2

from gr4ad_runtime.errors import Gr4adError, InvalidArgumentError, ResourceExhaustedError

DOMAIN = "gr4ad"
METADATA_KEY = "grpc-status-details-bin"


def status_details(error: Gr4adError) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata of an error: ErrorInfo; BadRequest of an invalid argument, RetryInfo where known."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    reason = type(error).__name__.removesuffix("Error")
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            reason="".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(reason)).upper(),
            domain=DOMAIN,
            metadata={"field": error.field} if error.field else {},
        )
    )
    if isinstance(error, InvalidArgumentError):
        bad_request = error_details_pb2.BadRequest()
        for field, description in error.violations or ((error.field, error.message),):
            bad_request.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad_request)
    if isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
        status.details.add().Pack(retry_info)
    return ((METADATA_KEY, status.SerializeToString()),)
