"""OpenRTB to the typed contract and back, field by field, and the choice of bids against its rules."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from ad_generator.bid_request import BidRequest, parse_bid_request
from ad_generator.openrtb import (
    NoBidReason,
    budget_us,
    has_user,
    open_impressions,
    to_bid_response,
    to_message,
    to_no_bid,
)
from gr4ad.generation.v1 import generation_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_runtime.errors import InvalidArgumentError
from gr4ad_runtime.validation import validate
from hypothesis import given
from hypothesis import strategies as st

CLICK = {"ad_id": "ad1", "behavior": "click", "time": 1_700_000_000.25}
PAST = {"ext": {"gr4ad": {"events": [CLICK, {"ad_id": "ad2", "behavior": "impression"}]}}}
COLD = {"ext": {"gr4ad": {"cold_start": True}}}


def bid_request(**fields: Any) -> BidRequest:
    return parse_bid_request(json.dumps({"id": "a1", "imp": [{"id": "1"}], "user": COLD, **fields}).encode())


def message(**fields: Any) -> generation_pb2.GenerateAdsRequest:
    request = bid_request(**fields)
    translated = to_message(request, request.imp, "a1-x", 80_000)
    validate(translated)
    return translated


def candidates(*ecpm_micros: int) -> generation_pb2.GenerateAdsResponse:
    """Make candidates `ad0`, `ad1` and so on, of the given values."""
    return generation_pb2.GenerateAdsResponse(
        candidates=[
            type_pb2.ScoredAd(
                ad_id=f"ad{number}",
                sid=type_pb2.SemanticId(codes=[number, 1]),
                log_prob=-1.5 * (number + 1),
                predicted_ecpm_micros=micros,
            )
            for number, micros in enumerate(ecpm_micros)
        ],
        policy=type_pb2.PolicyRef(policy_id="p", codebook_id="c"),
    )


def bids(
    response: generation_pb2.GenerateAdsResponse,
    advertisers: dict[str, str] | None = None,
    currency: str = "USD",
    **fields: Any,
) -> list[tuple[str, str, str | None]]:
    """Return (impression, ad, seat) of every bid."""
    request = bid_request(**fields)
    names = {ad.ad_id: "shop" for ad in response.candidates} if advertisers is None else advertisers
    made = to_bid_response(request, request.imp, "a1-x", response, names.get, currency)
    seats = [] if made is None else made["seatbid"]
    return [(bid["impid"], bid["adid"], seat.get("seat")) for seat in seats for bid in seat["bid"]]


@pytest.mark.parametrize(
    ("tmax", "left"),
    [(None, 1_000_000), (0, -20_000), (20, 0), (100, 80_000), (60_000, 59_980_000), (10**9, 60_000_000)],
)
def test_the_time_is_tmax_without_the_network(tmax: int | None, left: int) -> None:
    assert budget_us(bid_request(tmax=tmax), margin_us=20_000, default_us=1_000_000) == left


@pytest.mark.parametrize(
    ("fields", "open_ids"),
    [
        ({}, ["1", "2"]),
        ({"cur": []}, ["1", "2"]),
        ({"cur": ["JPY", "EUR"]}, ["1", "2"]),
        ({"cur": ["USD"]}, []),
        ({"imp": [{"id": "1", "bidfloor": 1}, {"id": "2", "bidfloor": 1, "bidfloorcur": "EUR"}]}, ["2"]),
        ({"imp": [{"id": "1", "bidfloor": 0, "bidfloorcur": "USD"}]}, ["1"]),
        ({"imp": [{"id": "1", "pmp": {"private_auction": 1}}, {"id": "2", "pmp": {"private_auction": 0}}]}, ["2"]),
    ],
)
def test_impressions_for_which_we_cannot_bid_are_left_out(fields: dict[str, Any], open_ids: list[str]) -> None:
    request = bid_request(**{"imp": [{"id": "1"}, {"id": "2"}], **fields})
    assert [imp.id for imp in open_impressions(request, "EUR")] == open_ids


def test_the_users_past_becomes_the_history() -> None:
    translated = message(user={"id": "theirs", "buyeruid": "ours", **PAST})
    context = translated.user_context
    assert (translated.request_id, translated.latency_budget_us) == ("a1-x", 80_000)
    assert (context.user_id, context.cold_start) == ("ours", False)
    assert [(event.ad_id, event.behavior) for event in context.history] == [
        ("ad1", type_pb2.BEHAVIOR_CLICK),
        ("ad2", type_pb2.BEHAVIOR_IMPRESSION),
    ]
    assert context.history[0].event_time.ToNanoseconds() == 1_700_000_000_250_000_000
    assert not context.history[1].HasField("event_time")
    assert not context.HasField("request_time")


def test_an_exchanges_own_id_names_the_user_where_there_is_no_other() -> None:
    assert message(user={"id": "theirs", **PAST}).user_context.user_id == "theirs"
    assert message(user=PAST).user_context.user_id == ""


def test_a_user_of_whom_nothing_is_said_is_unmatched() -> None:
    assert not has_user(bid_request(user=None))
    assert not has_user(bid_request(user={"buyeruid": "ours"}))
    assert has_user(bid_request(user=PAST))
    assert has_user(bid_request(user=COLD))
    assert message(user=COLD).user_context.cold_start


@pytest.mark.parametrize(
    "signal", [{"regs": {"coppa": 1}}, {"device": {"lmt": 1}}, {"device": {"dnt": 1}}, {"regs": {"gdpr": 1}}]
)
def test_a_user_who_must_not_be_profiled_is_a_stranger(signal: dict[str, Any]) -> None:
    user = {"id": "u", "buyeruid": "b", "keywords": "sport", "data": [{"segment": [{"id": "s"}]}], **PAST}
    fields = {"user": user, "site": {"domain": "news.example"}, **signal}
    assert has_user(bid_request(**fields))
    context = message(**fields).user_context
    assert (context.user_id, len(context.history), context.cold_start) == ("", 0, True)
    assert dict(context.features) == {"site.domain": "news.example"}


def test_place_device_and_data_become_features() -> None:
    context = message(
        site={"domain": "news.example", "cat": ["IAB12", "IAB12-1"], "page": "https://news.example/1"},
        app={"bundle": "com.example", "cat": ["IAB9"]},
        device={
            "devicetype": 4,
            "os": "Android",
            "language": "de",
            "connectiontype": 0,
            "ua": "x",
            "geo": {"country": "DEU", "region": "", "lat": 52.5},
        },
        user={
            **COLD,
            "keywords": "sport, ,news",
            "kwarray": ["jazz"],
            "data": [
                {
                    "id": "7",
                    "name": "dmp",
                    "segment": [{"id": "s1"}, {"name": "age", "value": "30-39"}, {"value": "x"}],
                },
                {"id": "8", "segment": [{"id": "s2", "value": "y"}]},
            ],
        },
    ).user_context
    assert dict(context.features) == {
        "site.domain": "news.example",
        "site.cat.IAB12": "1",
        "site.cat.IAB12-1": "1",
        "app.bundle": "com.example",
        "app.cat.IAB9": "1",
        "device.devicetype": "4",
        "device.os": "Android",
        "device.language": "de",
        "device.connectiontype": "0",
        "device.geo.country": "DEU",
        "user.data.dmp.s1": "1",
        "user.data.dmp.age": "30-39",
        "user.data.8.s2": "y",
        "user.keyword.jazz": "1",
        "user.keyword.sport": "1",
        "user.keyword.news": "1",
    }


def test_features_beyond_what_a_request_holds_are_left_out() -> None:
    segments = [{"id": f"s{number}"} for number in range(100)]
    features = message(app={"bundle": "b"}, user={**COLD, "data": [{"name": "d", "segment": segments}]}).user_context
    assert set(features.features) == {"app.bundle", *(f"user.data.d.s{number}" for number in range(63))}


@pytest.mark.parametrize(("wanted", "count"), [([1], 8), ([3], 24), ([2, 5], 56), ([64, 64], 512)])
def test_more_candidates_are_asked_for_than_bids_are_wanted(wanted: list[int], count: int) -> None:
    imps = [{"id": str(number), "ext": {"gr4ad": {"bids": bids}}} for number, bids in enumerate(wanted)]
    assert message(imp=imps).candidate_count == count


def test_a_bid_says_what_it_offers() -> None:
    request = bid_request(imp=[{"id": "1", "bidfloor": 0.5}])
    made = to_bid_response(
        request, request.imp, "a1-x", candidates(400_000, 1_234_567), {"ad1": "Shoes.Example"}.get, "EUR"
    )
    assert made == {
        "id": "a1",
        "bidid": "a1-x",
        "cur": "EUR",
        "seatbid": [
            {
                "seat": "Shoes.Example",
                "bid": [
                    {
                        "id": "a1-x.1",
                        "impid": "1",
                        "price": 1.234567,
                        "adid": "ad1",
                        "crid": "ad1",
                        "adomain": ["shoes.example"],
                        "ext": {"gr4ad": {"sid": [1, 1], "log_prob": -3.0}},
                    }
                ],
            }
        ],
        "ext": {"gr4ad": {"policy_id": "p", "codebook_id": "c"}},
    }


def test_each_account_has_a_seat_and_the_best_bid_comes_first() -> None:
    accounts = {"ad0": "shop", "ad1": "bank", "ad2": "shop", "ad3": ""}
    imp = [{"id": "1", "ext": {"gr4ad": {"bids": 4}}}]
    found = bids(candidates(9, 8, 7, 6), accounts, imp=imp)
    assert found == [("1", "ad0", "shop"), ("1", "ad2", "shop"), ("1", "ad1", "bank"), ("1", "ad3", None)]


@pytest.mark.parametrize(
    ("fields", "ads"),
    [
        ({}, ["ad0", "ad1", "ad2", "ad3"]),
        ({"wseat": []}, ["ad0", "ad1", "ad2", "ad3"]),
        ({"wseat": ["bank", "shoes.example"]}, ["ad1", "ad2"]),
        ({"bseat": ["bank", "shoes.example"]}, ["ad0", "ad3"]),
        ({"badv": ["SHOES.example", "bank"]}, ["ad0", "ad1", "ad3"]),  # `bank` is no domain: the exchange has to look
        ({"badv": ["example"]}, ["ad0", "ad1", "ad3"]),
        ({"badv": ["hoes.example", "www.shoes.example"]}, ["ad0", "ad1", "ad2", "ad3"]),
    ],
)
def test_seats_and_blocked_advertisers_are_heeded(fields: dict[str, Any], ads: list[str]) -> None:
    accounts = {"ad0": "shop", "ad1": "bank", "ad2": "shoes.example", "ad3": "shop"}
    imp = [{"id": "1", "ext": {"gr4ad": {"bids": 4}}}]
    assert sorted(ad for _, ad, _ in bids(candidates(9, 8, 7, 6), accounts, imp=imp, **fields)) == ads


def test_worthless_and_unknown_ads_are_never_bid_for() -> None:
    assert bids(candidates(0, 5), {"ad0": "shop"}) == []
    assert bids(candidates()) == []


def test_a_floor_is_met_to_the_last_digit() -> None:
    assert bids(candidates(1_100_000), imp=[{"id": "1", "bidfloor": 1.1}]) == [("1", "ad0", "shop")]
    assert bids(candidates(1_099_999), imp=[{"id": "1", "bidfloor": 1.1}]) == []


@given(
    values=st.lists(st.integers(0, 8), max_size=12),
    accounts=st.lists(st.sampled_from(["shop", "bank"]), min_size=12, max_size=12),
    impressions=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4)), min_size=1, max_size=4),
    wseat=st.sampled_from([None, ["shop"]]),
)
def test_every_bid_keeps_the_rules_and_none_is_missing(
    values: list[int], accounts: list[str], impressions: list[tuple[int, int]], wseat: list[str] | None
) -> None:
    """Against the rules told one by one: floor, seats, number, one impression an ad, the best first."""
    seat_of = {f"ad{number}": account for number, account in enumerate(accounts)}
    imps = [
        {"id": str(number), "bidfloor": floor / 1e6, "ext": {"gr4ad": {"bids": most}}}
        for number, (floor, most) in enumerate(impressions)
    ]
    found = bids(candidates(*values), seat_of, imp=imps, wseat=wseat)
    taken: set[int] = set()
    for number, (floor, most) in enumerate(impressions):
        fit = [
            place
            for place, value in enumerate(values)
            if place not in taken and value >= max(floor, 1) and accounts[place] in (wseat or seat_of.values())
        ]
        expected = set(itertools.islice(fit, most))
        assert {int(ad.removeprefix("ad")) for imp_id, ad, _ in found if imp_id == str(number)} == expected
        taken |= expected
    assert len(found) == len(taken)
    assert all(seat == seat_of[ad] for _, ad, seat in found)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("x" * 200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
WHOLE: dict[str, Any] = {
    "id": "a1",
    "imp": [{"id": "1", "bidfloor": 0.1, "pmp": {"private_auction": 0}, "ext": {"gr4ad": {"bids": 2}}}],
    "user": {"id": "u", "keywords": "k", "data": [{"name": "d", "segment": [{"id": "s", "value": "v"}]}], **PAST},
    "site": {"domain": "d", "cat": ["c"]},
    "device": {"os": "o", "geo": {"country": "c"}},
    "regs": {"gdpr": 0},
    "tmax": 100,
    "cur": ["USD"],
    "badv": ["b"],
}


def replace_somewhere(value: Any, draw: Any) -> Any:
    """Return a copy with one part, however deep, replaced by junk."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 4)) == 0:
        return draw(JUNK)
    if isinstance(value, list):
        return [replace_somewhere(value[0], draw), *value[1:]]
    key = draw(st.sampled_from(sorted(value)))
    return {**value, key: replace_somewhere(value[key], draw)}


@given(st.data())
def test_whatever_comes_is_refused_by_name_or_keeps_the_typed_contract(data: st.DataObject) -> None:
    body = json.dumps(replace_somewhere(WHOLE, data.draw)).encode()
    refused = ""
    try:
        request = parse_bid_request(body)
    except InvalidArgumentError as error:
        refused = error.field
    if refused:
        assert refused.split(".")[0].split("[")[0] in {"body", *WHOLE}
        return
    if has_user(request):
        translated = to_message(request, request.imp, "a1-x", 80_000)
        validate(translated)
        assert generation_pb2.GenerateAdsRequest.FromString(translated.SerializeToString()) == translated
    made = to_bid_response(request, request.imp, "a1-x", candidates(5, 10**9), lambda ad_id: "shop", "USD")
    assert made is None or json.loads(json.dumps(made))["id"] == request.id


def test_a_no_bid_tells_its_reason() -> None:
    assert to_no_bid(bid_request(), NoBidReason.UNMATCHED_USER) == {"id": "a1", "nbr": 8}
    assert json.loads(json.dumps(to_no_bid(bid_request(), NoBidReason.INSUFFICIENT_AUCTION_TIME)))["nbr"] == 15
