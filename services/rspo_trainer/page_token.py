"""Opaque tokens of list pages (AIP-158)."""

from __future__ import annotations

import base64
import binascii
import struct

from gr4ad_runtime.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 50
# Marks the list a token belongs to, so that the token of one list is refused by the other.
RUNS = b"r"
POLICIES = b"p"
_FORMAT = struct.Struct(">cq")


def encode(kind: bytes, number: int) -> str:
    """Return the token of the page that follows the entry with this number."""
    return base64.urlsafe_b64encode(_FORMAT.pack(kind, number)).decode()


def decode(kind: bytes, token: str) -> int | None:
    """Return the number that the page must stay below; None for the first page, which has no token.

    Raises:
        InvalidArgumentError: The token is not one of this list.
    """
    if not token:
        return None
    try:
        found, number = _FORMAT.unpack(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, struct.error, ValueError) as error:
        raise _bad(token) from error
    if found != kind:
        raise _bad(token)
    return int(number)


def _bad(token: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "page_token", repr(token), "send the next_page_token of the page before as it came, or none for the first page"
    )
