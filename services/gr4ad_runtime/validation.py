"""Checks of messages against the protovalidate rules of their contracts."""

from __future__ import annotations

from typing import Any

import protovalidate
from google.protobuf.message import Message

from gr4ad_runtime.errors import InvalidArgumentError, shorten

# Compiles a message's rules at its first use and keeps them; one for the process.
_validator = protovalidate.Validator()
NAMED_VIOLATIONS = 5


def validate(message: Message) -> None:
    """Check a message.

    Raises:
        InvalidArgumentError: A rule is broken; the message names the paths, the values and the rules.
    """
    violations = _validator.collect_violations(message)
    if not violations:
        return
    found = [(field_path(violation), describe(violation)) for violation in violations]
    (field, what), *others = found
    for path, description in others[: NAMED_VIOLATIONS - 1]:
        what += f"; {path}: {description}"
    if len(found) > NAMED_VIOLATIONS:
        what += f"; and {len(found) - NAMED_VIOLATIONS} more"
    error = InvalidArgumentError(field, "invalid", what)
    error.violations = tuple(found)
    raise error


def field_path(violation: Any) -> str:
    """Return the path of a violation's field, such as `ads[3].bid_micros`."""
    parts: list[str] = []
    for element in violation.proto.field.elements if violation.proto.field is not None else ():
        subscript = "" if element.subscript is None else f"[{element.subscript.value}]"
        parts.append(f"{element.field_name}{subscript}")
    return ".".join(parts) or "request"


def describe(violation: Any) -> str:
    """Return a violation's value, where it is a scalar or a list, and its rule."""
    rule = violation.proto.message or violation.proto.rule_id
    value = violation.field_value
    if value is None or isinstance(value, Message) or hasattr(value, "DESCRIPTOR"):
        return str(rule)
    if isinstance(value, str | bytes | bool | int | float):
        return f"{shorten(value)}: {rule}"
    return f"{len(value)} items: {rule}" if hasattr(value, "__len__") else str(rule)
