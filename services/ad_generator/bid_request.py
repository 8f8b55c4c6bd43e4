"""An OpenRTB 2.6 bid request: the fields that are read, and no others (OPENRTB.md lists them).

Attributes are named as in the specification. One that it does not require is None where it was not sent, which means
that it is unknown; one that nobody here reads may have any value.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from gr4ad_runtime.errors import InvalidArgumentError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Text = Annotated[str, Field(max_length=128)]
END_OF_TIME: Final = 253_402_300_800
"""Unix seconds of the year 10000, past what a timestamp can hold."""


class _Object(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(_Object):
    """A past event of the user: an extension, like all that is below `gr4ad`."""

    ad_id: Annotated[Text, Field(min_length=1)]
    behavior: Literal["impression", "click", "conversion"]
    time: Annotated[float, Field(ge=0, lt=END_OF_TIME, allow_inf_nan=False)] | None = None
    """Unix seconds."""


class KnownUser(_Object):
    """What the caller knows of the user, `user.ext.gr4ad`."""

    events: list[Event] = Field(default=[], max_length=256)
    """Oldest first."""
    cold_start: bool = False
    """States that the user truly has no past."""


class UserExt(_Object):
    """Extensions of the user."""

    gr4ad: KnownUser | None = None


class Segment(_Object):
    """A piece of data about the user."""

    id: str | None = None
    name: str | None = None
    value: str | None = None


class Data(_Object):
    """Data about the user from one provider."""

    id: str | None = None
    name: str | None = None
    segment: list[Segment] | None = None


class User(_Object):
    """The user of the device."""

    id: Text | None = None
    buyeruid: Text | None = None
    keywords: str | None = None
    kwarray: list[str] | None = None
    data: list[Data] | None = None
    consent: str | None = None
    ext: UserExt | None = None


class Geo(_Object):
    """Where the device is."""

    country: str | None = None
    region: str | None = None


class Device(_Object):
    """The device."""

    devicetype: int | None = None
    os: str | None = None
    language: str | None = None
    connectiontype: int | None = None
    geo: Geo | None = None
    dnt: int | None = None
    lmt: int | None = None


class Site(_Object):
    """The website."""

    domain: str | None = None
    cat: list[str] | None = None


class App(_Object):
    """The app."""

    bundle: str | None = None
    cat: list[str] | None = None


class Regs(_Object):
    """Regulations in force."""

    coppa: int | None = None
    gdpr: int | None = None


class Pmp(_Object):
    """The private marketplace of an impression."""

    private_auction: int | None = None


class Wanted(_Object):
    """What is wanted for an impression, `imp[].ext.gr4ad`."""

    bids: int = Field(default=3, ge=1, le=64)
    """Bids at most: several, so that one is left when the exchange blocks another."""


class ImpExt(_Object):
    """Extensions of an impression."""

    gr4ad: Wanted | None = None


class Imp(_Object):
    """An impression that is auctioned."""

    id: str = Field(min_length=1)
    bidfloor: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """CPM."""
    bidfloorcur: str | None = None
    pmp: Pmp | None = None
    ext: ImpExt | None = None

    @property
    def bids(self) -> int:
        """Bids wanted at most."""
        return ((self.ext and self.ext.gr4ad) or Wanted()).bids


class BidRequest(_Object):
    """A bid request."""

    id: str = Field(min_length=1)
    imp: list[Imp] = Field(min_length=1)
    site: Site | None = None
    app: App | None = None
    device: Device | None = None
    user: User | None = None
    regs: Regs | None = None
    test: int | None = None
    tmax: Annotated[int, Field(ge=0)] | None = None
    """Milliseconds."""
    wseat: list[str] | None = None
    bseat: list[str] | None = None
    cur: list[str] | None = None
    badv: list[str] | None = None

    @property
    def may_profile(self) -> bool:
        """Whether the user's past and data may decide.

        Not for a child (COPPA), nor where the device asks for no tracking, nor where GDPR applies and no consent
        string came. What a consent string allows, the sender has to heed: it is not read here.
        """
        regs, device = self.regs or Regs(), self.device or Device()
        consent = regs.gdpr != 1 or bool(self.user and self.user.consent)
        return consent and 1 not in (regs.coppa, device.dnt, device.lmt)

    @property
    def known_user(self) -> KnownUser:
        """What the caller knows of the user; nothing where it did not say."""
        return (self.user and self.user.ext and self.user.ext.gr4ad) or KnownUser()


def parse_bid_request(body: bytes) -> BidRequest:
    """Read a bid request.

    Args:
        body: JSON in UTF-8.

    Raises:
        InvalidArgumentError: It is no JSON, or a field that is read has another type or value than the specification
            allows; the message names the first such field.
    """
    try:
        request = BidRequest.model_validate_json(body)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        path = _path(first["loc"])
        value = "missing" if first["type"] == "missing" else first["input"] if path else f"{len(body)} bytes"
        more = f"; {len(others)} more fields are wrong" if others else ""
        raise InvalidArgumentError(path or "body", value, f"{first['msg']}; see OPENRTB.md{more}") from error
    seen: set[str] = set()
    for number, imp in enumerate(request.imp):
        if imp.id in seen:
            raise InvalidArgumentError(f"imp[{number}].id", imp.id, "give each impression an id of its own")
        seen.add(imp.id)
    return request


def _path(location: tuple[int | str, ...]) -> str:
    """Write a place as `imp[0].bidfloor`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
