"""Bid requests as they are read: what is taken, what is left alone, and how a wrong one is named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ad_generator.bid_request import BidRequest, parse_bid_request
from gr4ad_runtime.errors import InvalidArgumentError

LEAST: dict[str, Any] = {"id": "a1", "imp": [{"id": "1"}]}


def changed(**fields: Any) -> bytes:
    return json.dumps({**copy.deepcopy(LEAST), **fields}).encode()


def test_the_least_bid_request_is_read() -> None:
    request = parse_bid_request(changed())
    assert (request.id, [imp.id for imp in request.imp]) == ("a1", ["1"])
    assert (request.tmax, request.cur, request.user) == (None, None, None)
    assert request.imp[0].bids == 3
    assert (request.known_user.events, request.known_user.cold_start) == ([], False)


def test_fields_that_nobody_reads_may_hold_anything() -> None:
    """OpenRTB 2.6 §2.6: what is new or unexpected is borne."""
    everywhere = {"novelty": [1, {"deep": None}], "ext": {"exchange": {"x": 1}}}
    request = parse_bid_request(
        changed(
            **everywhere,
            at=501,
            source={"fd": 1, "schain": {"complete": 1, "nodes": []}},
            imp=[{"id": "1", "banner": {"w": 300, "h": 250}, "secure": 1, **everywhere}],
            device={"devicetype": 99, "ua": "x", **everywhere},
            user={"yob": 1970, "eids": [{"source": "x"}], **everywhere},
        )
    )
    assert (request.imp[0].bids, request.device and request.device.devicetype) == (3, 99)
    assert request.known_user.events == []


def test_null_is_the_same_as_absent() -> None:
    optional = [name for name in BidRequest.model_fields if name not in LEAST]
    assert parse_bid_request(changed(**dict.fromkeys(optional))) == parse_bid_request(changed())
    imp = {"id": "1", "bidfloor": None, "bidfloorcur": None, "pmp": None, "ext": {"gr4ad": None}}
    assert parse_bid_request(changed(imp=[imp])).imp[0].bids == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: 0 bytes: Invalid JSON"),
        (b'{"id": "a1", "imp": [', "body: 21 bytes: Invalid JSON"),
        (b"\xff\xfe", "body: 2 bytes: Invalid JSON"),
        (b"[]", "body: 2 bytes: Input should be an object"),
        (b'{"imp": [{"id": "1"}]}', "id: missing: "),
        (changed(id=""), "id: (empty): "),
        (changed(id=7), "id: 7: Input should be a valid string"),
        (b'{"id": "a1"}', "imp: missing: "),
        (changed(imp=[]), "imp: []: "),
        (changed(imp=[{"id": "1"}, {"tagid": "x"}]), "imp[1].id: missing: "),
        (changed(imp=[{"id": "1"}, {"id": "2"}, {"id": "1"}]), "imp[2].id: 1: give each impression an id of its own"),
        (changed(imp=[{"id": "1", "bidfloor": -0.5}]), "imp[0].bidfloor: -0.5: "),
        (changed(imp=[{"id": "1", "bidfloor": "much"}]), "imp[0].bidfloor: much: "),
        (b'{"id": "a1", "imp": [{"id": "1", "bidfloor": NaN}]}', "imp[0].bidfloor: nan: "),
        (changed(imp=[{"id": "1", "ext": {"gr4ad": {"bids": 0}}}]), "imp[0].ext.gr4ad.bids: 0: "),
        (changed(imp=[{"id": "1", "ext": {"gr4ad": {"bids": 65}}}]), "imp[0].ext.gr4ad.bids: 65: "),
        (changed(tmax=-1), "tmax: -1: "),
        (changed(tmax="soon"), "tmax: soon: "),
        (changed(cur="USD"), "cur: USD: Input should be a valid array"),
        (changed(user={"id": "u" * 129}), "user.id: uuu"),
        (changed(user={"ext": {"gr4ad": {"events": [{"ad_id": "x"}]}}}), "user.ext.gr4ad.events[0].behavior: missing"),
        (
            changed(user={"ext": {"gr4ad": {"events": [{"ad_id": "x", "behavior": "look"}]}}}),
            "user.ext.gr4ad.events[0].behavior: look: Input should be 'impression', 'click' or 'conversion'",
        ),
        (
            changed(user={"ext": {"gr4ad": {"events": [{"ad_id": "", "behavior": "click"}]}}}),
            "user.ext.gr4ad.events[0].ad_id: (empty): ",
        ),
        (
            changed(user={"ext": {"gr4ad": {"events": [{"ad_id": "x", "behavior": "click", "time": 1e300}]}}}),
            "user.ext.gr4ad.events[0].time: 1e+300: ",
        ),
        (
            changed(user={"ext": {"gr4ad": {"events": [{"ad_id": "x", "behavior": "click"}] * 257}}}),
            "user.ext.gr4ad.events: [",
        ),
        (changed(tmax=-1, imp=[], test="x"), "; 2 more fields are wrong"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(body: bytes, said: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        parse_bid_request(body)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("fields", "may_profile"),
    [
        ({}, True),
        ({"regs": {"coppa": 0, "gdpr": 0}, "device": {"dnt": 0, "lmt": 0}}, True),
        ({"regs": {"coppa": 1}}, False),
        ({"device": {"dnt": 1}}, False),
        ({"device": {"lmt": 1}}, False),
        ({"regs": {"gdpr": 1}}, False),
        ({"regs": {"gdpr": 1}, "user": {"consent": ""}}, False),
        ({"regs": {"gdpr": 1}, "user": {"consent": "CPXx"}}, True),
        ({"regs": {"gdpr": 1, "coppa": 1}, "user": {"consent": "CPXx"}}, False),
    ],
)
def test_the_users_past_counts_only_where_it_may(fields: dict[str, Any], may_profile: bool) -> None:
    assert parse_bid_request(changed(**fields)).may_profile is may_profile
