"""Between OpenRTB 2.6 and the typed contract, field by field as OPENRTB.md lists them; pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from itertools import islice
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.generation.v1 import generation_pb2
from gr4ad.type.v1 import type_pb2

from ad_generator.bid_request import BidRequest, Event, Imp, KnownUser, User

AdvertiserOf = Callable[[str], str | None]
"""Tells the account that pays for an ad; None for an ad that is not known."""

CANDIDATES_PER_BID: Final = 8
"""Ads to ask for per bid wanted: floors and block lists leave fewer, and the reward log learns from all of them."""
MOST_CANDIDATES: Final = 512
MOST_FEATURES: Final = 64
LONGEST_BUDGET_US: Final = 60_000_000
BEHAVIORS: Final = {
    "impression": type_pb2.BEHAVIOR_IMPRESSION,
    "click": type_pb2.BEHAVIOR_CLICK,
    "conversion": type_pb2.BEHAVIOR_CONVERSION,
}
DOMAIN: Final = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")


class NoBidReason(IntEnum):
    """Why there is no bid: those of OpenRTB's no-bid reason codes that occur here."""

    TECHNICAL_ERROR = 1
    UNMATCHED_USER = 8
    INSUFFICIENT_AUCTION_TIME = 15


def budget_us(request: BidRequest, margin_us: int, default_us: int) -> int:
    """Return the time for an answer from the request's arrival on, in microseconds; 0 or less where there is none.

    Args:
        request: `tmax` counts where it is given.
        margin_us: What of `tmax` the network takes.
        default_us: Time of a request without `tmax`.
    """
    return default_us if request.tmax is None else min(request.tmax * 1000 - margin_us, LONGEST_BUDGET_US)


def open_impressions(request: BidRequest, currency: str) -> list[Imp]:
    """Return the impressions that a bid in our currency, without a deal, may be made for; in the request's order."""
    if request.cur and currency not in request.cur:
        return []
    return [
        imp
        for imp in request.imp
        if not (imp.pmp and imp.pmp.private_auction == 1)
        and (not imp.bidfloor or (imp.bidfloorcur or "USD") == currency)
    ]


def has_user(request: BidRequest) -> bool:
    """Tell whether the request says who to choose ads for: past events, that there are none, or that none may count."""
    known = request.known_user
    return not request.may_profile or bool(known.events) or known.cold_start


def to_message(
    request: BidRequest, imps: Sequence[Imp], request_id: str, latency_budget_us: int
) -> generation_pb2.GenerateAdsRequest:
    """Translate a bid request for which `has_user` holds.

    Args:
        request: The request.
        imps: The impressions to bid for, at least one.
        request_id: Of the list, in the reward log.
        latency_budget_us: Time for the answer.
    """
    may_profile = request.may_profile
    user = (may_profile and request.user) or User()
    events = request.known_user.events if may_profile else KnownUser().events
    wanted = sum(imp.bids for imp in imps)
    return generation_pb2.GenerateAdsRequest(
        request_id=request_id,
        user_context=type_pb2.UserContext(
            user_id=user.buyeruid or user.id or "",
            history=[_history_event(event) for event in events],
            features=_features(request, user),
            cold_start=not events,
        ),
        candidate_count=min(CANDIDATES_PER_BID * wanted, MOST_CANDIDATES),
        latency_budget_us=latency_budget_us,
    )


def to_bid_response(
    request: BidRequest,
    imps: Sequence[Imp],
    request_id: str,
    response: generation_pb2.GenerateAdsResponse,
    advertiser_of: AdvertiserOf,
    currency: str,
) -> dict[str, Any] | None:
    """Make bids of candidates; None where no candidate may be bid for any impression.

    Impressions choose in their order, each the best candidates that none before it took: an ad is bid for one
    impression of a request.

    Args:
        request: What was asked.
        imps: The impressions to bid for.
        request_id: Of the list, in the reward log.
        response: The candidates, the best first.
        advertiser_of: Tells each candidate's account.
        currency: That of the accounts, hence of the bids.
    """
    may_bid, left = _may_bid(request), {}
    for place, ad in enumerate(response.candidates):
        advertiser = advertiser_of(ad.ad_id)
        if ad.predicted_ecpm_micros > 0 and advertiser is not None and may_bid(advertiser):
            left[place] = (ad, advertiser)
    seats: dict[str, list[dict[str, Any]]] = {}
    for imp in imps:
        floor = imp.bidfloor or 0.0
        above = (place for place, (ad, _) in left.items() if _price(ad) >= floor)
        for place in list(islice(above, imp.bids)):
            ad, advertiser = left.pop(place)
            seats.setdefault(advertiser, []).append(_bid(ad, advertiser, imp, f"{request_id}.{place}"))
    if not seats:
        return None
    return {
        "id": request.id,
        "bidid": request_id,
        "cur": currency,
        "seatbid": [{"seat": seat, "bid": bids} if seat else {"bid": bids} for seat, bids in seats.items()],
        "ext": {"gr4ad": {"policy_id": response.policy.policy_id, "codebook_id": response.policy.codebook_id}},
    }


def to_no_bid(request: BidRequest, reason: NoBidReason) -> dict[str, Any]:
    """Make a response that tells why there is no bid."""
    return {"id": request.id, "nbr": int(reason)}


def _history_event(event: Event) -> type_pb2.HistoryEvent:
    when = None
    if event.time is not None:
        when = Timestamp()
        when.FromMicroseconds(int(event.time * 1e6))
    return type_pb2.HistoryEvent(ad_id=event.ad_id, behavior=BEHAVIORS[event.behavior], event_time=when)


def _features(request: BidRequest, user: User) -> dict[str, str]:
    """Name what the request tells of place, device and user; the first 64 where there are more."""
    features: dict[str, str] = {}
    for name, value in (*_context_features(request), *_user_features(user)):
        if value not in (None, "") and len(features) < MOST_FEATURES:
            features[name] = str(value)
    return features


def _context_features(request: BidRequest) -> Iterator[tuple[str, Any]]:
    if request.site is not None:
        yield "site.domain", request.site.domain
        yield from ((f"site.cat.{category}", 1) for category in request.site.cat or ())
    if request.app is not None:
        yield "app.bundle", request.app.bundle
        yield from ((f"app.cat.{category}", 1) for category in request.app.cat or ())
    if request.device is not None:
        for name in ("devicetype", "os", "language", "connectiontype"):
            yield f"device.{name}", getattr(request.device, name)
        if request.device.geo is not None:
            yield "device.geo.country", request.device.geo.country
            yield "device.geo.region", request.device.geo.region


def _user_features(user: User) -> Iterator[tuple[str, Any]]:
    for data in user.data or ():
        for segment in data.segment or ():
            name = segment.id or segment.name
            if name:
                yield f"user.data.{data.name or data.id or ''}.{name}", segment.value or 1
    for keyword in [*(user.kwarray or ()), *(user.keywords or "").split(",")]:
        if keyword.strip():
            yield f"user.keyword.{keyword.strip()}", 1


def _may_bid(request: BidRequest) -> Callable[[str], bool]:
    """Return what tells whether the request admits an account as seat and, where its domain is known, as advertiser."""
    wanted, unwanted = set(request.wseat or ()), set(request.bseat or ())
    blocked = {domain.lower() for domain in request.badv or ()}

    def may_bid(advertiser: str) -> bool:
        if (wanted and advertiser not in wanted) or advertiser in unwanted:
            return False
        parts = (_domain(advertiser) or "").split(".")
        return not any(".".join(parts[start:]) in blocked for start in range(len(parts)))

    return may_bid


def _domain(advertiser: str) -> str | None:
    """Return an account's domain: its id, where that has the form of one."""
    domain = advertiser.lower()
    return domain if DOMAIN.fullmatch(domain) else None


def _price(ad: type_pb2.ScoredAd) -> float:
    """Return what a thousand impressions are expected to be worth, in units of the currency."""
    return ad.predicted_ecpm_micros / 1e6


def _bid(ad: type_pb2.ScoredAd, advertiser: str, imp: Imp, bid_id: str) -> dict[str, Any]:
    domain = _domain(advertiser)
    return {
        "id": bid_id,
        "impid": imp.id,
        "price": _price(ad),
        "adid": ad.ad_id,
        "crid": ad.ad_id,
        **({} if domain is None else {"adomain": [domain]}),
        "ext": {"gr4ad": {"sid": list(ad.sid.codes), "log_prob": ad.log_prob}},
    }
