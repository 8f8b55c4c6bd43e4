"""The contract's messages and the service's own values, one into the other."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.errors import InvalidArgumentError

from sid_assigner.ads import Ad, AdSid, CatalogEntry, make_ad
from sid_assigner.batch_creator import Batch
from sid_assigner.codebook_registry import RegisteredCodebook
from sid_assigner.feed_reader import CatalogPart


def _names(enum: Any, prefix: str) -> Mapping[int, str]:
    """Map an enum's numbers to our lower-case words; "not stated" is the empty one."""
    words = {number: name.removeprefix(prefix).lower() for name, number in enum.items()}
    return words | {0: ""}


AD_TYPES = _names(sid_pb2.AdType, "AD_TYPE_")
CONVERSION_TYPES = _names(sid_pb2.ConversionType, "CONVERSION_TYPE_")
STATES = _names(sid_pb2.AdState, "AD_STATE_")
CONVERSION_TYPE_NUMBERS: Mapping[str, Any] = {word: number for number, word in CONVERSION_TYPES.items()}
STATE_NUMBERS: Mapping[str, Any] = {word: number for number, word in STATES.items()}
CODEBOOK_STATE_NUMBERS: Mapping[str, Any] = {
    word: number for number, word in _names(sid_pb2.CodebookState, "CODEBOOK_STATE_").items()
}


def batch_of(request: sid_pb2.BatchCreateAdSidsRequest, traceparent: str) -> Batch:
    """Read a batch of ads."""
    fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return Batch(request.request_id, fingerprint, [_ad_of(ad) for ad in request.ads], traceparent)


def _ad_of(ad: sid_pb2.Ad) -> Ad:
    return make_ad(
        ad_id=ad.ad_id,
        title=ad.title,
        brand=ad.brand,
        categories=ad.categories,
        description=ad.description,
        advertiser_id=ad.advertiser_id,
        ad_type=AD_TYPES[ad.ad_type],
        conversion_type=CONVERSION_TYPES[ad.conversion_type],
        bid_micros=ad.bid_micros,
        state=STATES[ad.state],
        embedding=ad.embedding,
    )


def ad_sid_message(ad_sid: AdSid) -> sid_pb2.AdSid:
    """Write an ad with its SID."""
    return sid_pb2.AdSid(
        ad_id=ad_sid.ad_id,
        codebook_id=ad_sid.codebook_id,
        sid=type_pb2.SemanticId(codes=ad_sid.codes),
        advertiser_id=ad_sid.advertiser_id,
        conversion_type=CONVERSION_TYPE_NUMBERS[ad_sid.conversion_type],
        bid_micros=ad_sid.bid_micros,
        state=STATE_NUMBERS[ad_sid.state],
        create_time=_timestamp(ad_sid.create_time),
        update_time=_timestamp(ad_sid.update_time),
    )


def page_token(last: str) -> str:
    """Return what asks for the page behind an ad; empty for none."""
    return base64.urlsafe_b64encode(last.encode()).decode() if last else ""


def page_start(token: str) -> str:
    """Return the ad that the page of a token begins behind; empty for the first page.

    Raises:
        InvalidArgumentError: It is no token.
    """
    try:
        last = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        remedy = "give the next_page_token of the answer before, or none"
        raise InvalidArgumentError("page_token", repr(token), remedy) from error
    return last.replace("\0", "")


def catalog_message(part: CatalogPart) -> sid_pb2.ReadCatalogResponse:
    """Write a part of the catalogue."""
    return sid_pb2.ReadCatalogResponse(
        codebook_id=part.codebook_id,
        entries=[_entry_message(entry) for entry in part.entries],
        cursor=part.cursor,
        snapshot_complete=part.snapshot_complete,
    )


def _entry_message(entry: CatalogEntry) -> sid_pb2.CatalogEntry:
    return sid_pb2.CatalogEntry(
        ad_id=entry.ad_id,
        sid=type_pb2.SemanticId(codes=entry.codes),
        state=STATE_NUMBERS[entry.state],
        bid_micros=entry.bid_micros,
        advertiser_id=entry.advertiser_id,
        conversion_type=CONVERSION_TYPE_NUMBERS[entry.conversion_type],
        traceparent=entry.traceparent,
        change_time=None if entry.change_time is None else _timestamp(entry.change_time),
    )


def codebook_message(codebook: RegisteredCodebook) -> sid_pb2.Codebook:
    """Write a registered codebook."""
    return sid_pb2.Codebook(
        codebook_id=codebook.codebook_id,
        level_sizes=codebook.level_sizes,
        embedding_dim=codebook.embedding_dim,
        sha256=codebook.sha256,
        state=CODEBOOK_STATE_NUMBERS[codebook.state],
        create_time=_timestamp(codebook.create_time),
    )


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message
