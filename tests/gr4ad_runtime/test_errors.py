from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from gr4ad_runtime import errors
from gr4ad_runtime.status_details import METADATA_KEY, status_details


def subclasses(kind: type[errors.Gr4adError]) -> set[type[errors.Gr4adError]]:
    return {kind, *(leaf for child in kind.__subclasses__() for leaf in subclasses(child))}


def test_every_class_is_drawn_with_its_code() -> None:
    drawn = (errors.__doc__ or "").splitlines()
    for kind in subclasses(errors.Gr4adError):
        if kind is errors.FieldError:
            continue
        lines = [line for line in drawn if line.split("── ")[-1].split()[:1] == [kind.__name__]]
        assert len(lines) == 1, kind
        assert kind.code.name in lines[0] or "code" not in vars(kind), kind


def test_a_message_names_field_value_and_remedy() -> None:
    error = errors.NotFoundError("ad_id", "a1", "create it first")
    assert str(error) == error.message == "ad_id: a1: create it first"
    assert (error.field, error.value, error.remedy) == ("ad_id", "a1", "create it first")
    assert error.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("value", "shown"), [("", "(empty)"), (0, "0"), ("x" * 160, "x" * 160), ("x" * 161, "x" * 159 + "…")]
)
def test_values_are_kept_short(value: object, shown: str) -> None:
    assert errors.shorten(value) == shown


def details(error: errors.Gr4adError) -> tuple[status_pb2.Status, error_details_pb2.ErrorInfo]:
    [(key, data)] = status_details(error)
    assert key == METADATA_KEY
    status = status_pb2.Status.FromString(data)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return status, info


def test_details_say_the_same_in_machine_readable_form() -> None:
    status, info = details(errors.FailedPreconditionError("codebook_id", "c1", "activate one"))
    assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert status.message == "codebook_id: c1: activate one"
    assert (info.reason, info.domain, dict(info.metadata)) == ("FAILED_PRECONDITION", "gr4ad", {"field": "codebook_id"})
    assert len(status.details) == 1


def test_an_invalid_argument_lists_every_field() -> None:
    error = errors.InvalidArgumentError("a", 1, "no")
    error.violations = (("a", "no"), ("b", "neither"))
    status, _ = details(error)
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert [(field.field, field.description) for field in bad.field_violations] == [("a", "no"), ("b", "neither")]


def test_something_used_up_tells_when_to_retry_where_that_is_known() -> None:
    status, _ = details(errors.ResourceExhaustedError("queue", "9 requests", "retry", retry_after_s=0.25))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMicroseconds() == 250_000
    status, _ = details(errors.ResourceExhaustedError("disk", "full", "free some space"))
    assert len(status.details) == 1
