"""Attribution as one reads it: for every response, look through all lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """A list: its request, its user, when it was served, and the ads of it that have an impression."""

    request_id: str
    user_id: str
    time: int
    shown: frozenset[str]


@dataclass(frozen=True)
class Response:
    """A response: what it names, and when it came."""

    request_id: str
    user_id: str
    ad_id: str
    time: int


def owner(response: Response, lists: Sequence[Served], window: int) -> str | None:
    """Return the request whose list a response belongs to; None where it belongs to none."""
    best: Served | None = None
    for served in lists:
        if response.request_id:
            fits = served.request_id == response.request_id and response.time <= served.time + window
        else:
            fits = (
                served.user_id == response.user_id != ""
                and response.ad_id in served.shown
                and served.time <= response.time <= served.time + window
            )
        if fits and (best is None or (served.time, served.request_id) > (best.time, best.request_id)):
            best = served
    return None if best is None else best.request_id
