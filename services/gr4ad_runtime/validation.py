"""Checks of messages against the protovalidate rules of their contracts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    found = [(field_path(violation), *describe(violation)) for violation in violations]
    (field, value, rule), *others = found
    for path, other_value, other_rule in others[: NAMED_VIOLATIONS - 1]:
        rule += f"; {path}: {shorten(other_value)}: {other_rule}"
    if len(found) > NAMED_VIOLATIONS:
        rule += f"; and {len(found) - NAMED_VIOLATIONS} more"
    error = InvalidArgumentError(field, value, rule)
    error.violations = tuple((path, broken) for path, _, broken in found)
    raise error


def field_path(violation: Any) -> str:
    """Return the path of a violation's field, such as `ads[3].bid_micros`."""
    parts: list[str] = []
    for element in violation.proto.field.elements if violation.proto.field is not None else ():
        subscript = "" if element.subscript is None else f"[{element.subscript.value}]"
        parts.append(f"{element.field_name}{subscript}")
    return ".".join(parts) or "request"


def describe(violation: Any) -> tuple[str, str]:
    """Return a violation's value, shown where it is a scalar and counted where it is a list, and its rule."""
    rule = str(violation.proto.message or violation.proto.rule_id)
    value = violation.field_value
    if isinstance(value, str | bytes | bool | int | float):
        return str(value), rule
    if isinstance(value, Sequence | Mapping):
        return f"{len(value)} items", rule
    return ("missing" if violation.proto.rule_id == "required" else "invalid"), rule
