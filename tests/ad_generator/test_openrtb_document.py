"""OPENRTB.md lists the fields that are read, all of them and no others, and its example works."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ad_generator.bid_request import BidRequest, parse_bid_request
from ad_generator.openrtb import has_user, open_impressions, to_message
from gr4ad_runtime.validation import validate
from pydantic import BaseModel

DOCUMENT = (Path(__file__).parents[2] / "services" / "ad_generator" / "OPENRTB.md").read_text()


def fields_of(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the path of every field that a model reads, such as `imp[].bidfloor`."""
    for name, field in model.model_fields.items():
        yield from below(field.annotation, f"{path}.{name}".removeprefix("."))


def below(annotation: Any, path: str) -> Iterator[str]:
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from fields_of(annotation, path)
    elif typing.get_origin(annotation) is list and issubclass(parts[0], BaseModel):
        yield from fields_of(parts[0], f"{path}[]")
    elif parts and isinstance(parts[0], type) and issubclass(parts[0], BaseModel):
        yield from fields_of(parts[0], path)
    elif parts and typing.get_origin(parts[0]) is list:
        yield from below(parts[0], path)
    else:
        yield path


def test_the_table_lists_what_is_read() -> None:
    _, _, section = DOCUMENT.partition("## What is read")
    rows = [line for line in section.partition("## What is answered")[0].splitlines() if line.startswith("| `")]
    listed = [path for row in rows for path in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert sorted(listed) == sorted(fields_of(BidRequest))


def test_the_example_can_be_answered() -> None:
    asked, answered = re.findall(r"```json\n(.*?)```", DOCUMENT, flags=re.S)
    request = parse_bid_request(asked.encode())
    imps = open_impressions(request, "USD")
    assert has_user(request)
    message = to_message(request, imps, "auction-1-x", 100_000)
    validate(message)
    assert (message.candidate_count, message.user_context.features["site.cat.IAB12"]) == (16, "1")
    answer = json.loads(answered)
    assert (answer["id"], answer["seatbid"][0]["bid"][0]["impid"]) == (request.id, imps[0].id)
