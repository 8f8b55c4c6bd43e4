"""POST /openrtb2/bid: an OpenRTB 2.6 bid request over HTTP, answered within its tmax."""

from __future__ import annotations

import asyncio
import json
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

from gr4ad_runtime import semconv
from gr4ad_runtime.errors import DeadlineExceededError, Gr4adError, InvalidArgumentError
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.telemetry import meter, tracer
from gr4ad_runtime.validation import validate
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind
from starlette.requests import Request
from starlette.responses import Response

from ad_generator.arrival import Arrival
from ad_generator.bid_request import BidRequest, parse_bid_request
from ad_generator.kserve_model import Generate
from ad_generator.openrtb import (
    AdvertiserOf,
    NoBidReason,
    budget_us,
    has_user,
    open_impressions,
    to_bid_response,
    to_message,
    to_no_bid,
)

PATH: Final = "/openrtb2/bid"
VERSION_HEADER: Final = "x-openrtb-version"
VERSION: Final = "2.6"
LARGEST_BODY: Final = 2**20
"""Bytes, unpacked; a usual bid request has some thousand."""
LONGEST_ID: Final = 80
"""Of a bid request's id, as many characters as a list's id carries beside 32 random ones."""

log = get_logger(__name__)


@dataclass(frozen=True)
class Answer:
    """What is sent back: a status, its content (None for none), and for the metrics what became of the request."""

    status: HTTPStatus
    content: dict[str, Any] | None
    outcome: str


class BidEndpoint:
    """Answers bid requests with the generator's candidates.

    Whatever stands in the way of a bid, an overload included, is a no-bid; only a request that is wrong in itself is an
    error.
    """

    def __init__(
        self,
        generate: Generate,
        advertiser_of: AdvertiserOf,
        *,
        currency: str,
        margin_us: int,
        default_budget_us: int,
    ) -> None:
        """Wire the parts.

        Args:
            generate: Answers a request of the typed contract, and logs its list.
            advertiser_of: Tells the account of an ad.
            currency: That of the accounts, ISO 4217.
            margin_us: What of a request's tmax is kept back for the network.
            default_budget_us: Time of a request without tmax.
        """
        self._generate = generate
        self._advertiser_of = advertiser_of
        self._currency = currency
        self._margin_us = margin_us
        self._default_budget_us = default_budget_us
        self._answers = meter(__name__).create_counter(
            semconv.METRIC_BID_REQUESTS, "{request}", "OpenRTB bid requests, by what became of them."
        )

    async def post(self, request: Request) -> Response:
        """Answer an HTTP request."""
        with tracer(__name__).start_as_current_span(
            semconv.SPAN_ANSWER_BID_REQUEST, context=extract(request.headers), kind=SpanKind.SERVER
        ):
            answer = await self.answer(request)
        self._answers.add(1, {semconv.OUTCOME: answer.outcome})
        headers = {VERSION_HEADER: VERSION}
        if answer.content is None:
            return Response(status_code=answer.status, headers=headers)
        content = json.dumps(answer.content, separators=(",", ":"))
        return Response(content, answer.status, headers, media_type="application/json")

    async def answer(self, request: Request) -> Answer:
        """Read a request and answer it."""
        try:
            arrival = Arrival.of_headers(request.headers)
            _check_version(request.headers)
            bid_request = parse_bid_request(await _body_of(request))
            return await self._bid(bid_request, replace(arrival, test=bid_request.test == 1))
        except InvalidArgumentError as error:
            return Answer(HTTPStatus.BAD_REQUEST, {"error": error.message}, "invalid")

    async def _bid(self, request: BidRequest, arrival: Arrival) -> Answer:
        imps = open_impressions(request, self._currency)
        if not imps:
            return NOTHING_TO_BID
        if not has_user(request):
            return _no_bid(request, NoBidReason.UNMATCHED_USER)
        budget = budget_us(request, self._margin_us, self._default_budget_us)
        left_us = budget - arrival.elapsed_us()
        if left_us <= 0:
            return _no_bid(request, NoBidReason.INSUFFICIENT_AUCTION_TIME)
        request_id = f"{request.id[:LONGEST_ID]}-{uuid.uuid4().hex}"
        message = to_message(request, imps, request_id, left_us)
        validate(message)
        try:
            # The queue gives up a request whose time is over; a model call under way goes on, but is not waited for.
            async with asyncio.timeout(left_us * 1e-6):
                response = await self._generate(message, arrival)
        except (DeadlineExceededError, TimeoutError):
            return _no_bid(request, NoBidReason.INSUFFICIENT_AUCTION_TIME)
        except Gr4adError as error:
            log.debug("no bid", error=error.message)
            return _no_bid(request, NoBidReason.TECHNICAL_ERROR)
        content = to_bid_response(request, imps, request_id, response, self._advertiser_of, self._currency)
        return NOTHING_TO_BID if content is None else Answer(HTTPStatus.OK, content, "bid")


NOTHING_TO_BID: Final = Answer(HTTPStatus.NO_CONTENT, None, "nothing to bid")


def _no_bid(request: BidRequest, reason: NoBidReason) -> Answer:
    return Answer(HTTPStatus.OK, to_no_bid(request, reason), reason.name.lower().replace("_", " "))


async def _body_of(request: Request) -> bytes:
    """Return the body, unpacked where it is said to be packed (OpenRTB 2.6 §2.4)."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        _check_size(body)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity":
        return bytes(body)
    if encoding != "gzip":
        raise InvalidArgumentError("content-encoding", encoding, "send gzip, or leave the header out")
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(body, LARGEST_BODY + 1)
    except zlib.error as error:
        raise InvalidArgumentError("body", f"{len(body)} bytes", f"{error}: send gzip, as the header says") from error
    _check_size(content)
    if not unpacker.eof:
        raise InvalidArgumentError("body", f"{len(body)} bytes", "the gzip stream has no end: send all of it")
    return content


def _check_size(body: bytes | bytearray) -> None:
    if len(body) > LARGEST_BODY:
        raise InvalidArgumentError("body", f"more than {LARGEST_BODY} bytes", "send fewer")


def _check_version(headers: Mapping[str, str]) -> None:
    version = headers.get(VERSION_HEADER, VERSION)
    if not version.startswith("2."):
        raise InvalidArgumentError(VERSION_HEADER, version, "send a bid request of OpenRTB 2.x")
