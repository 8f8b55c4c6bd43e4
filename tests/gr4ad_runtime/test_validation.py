from __future__ import annotations

import pytest
from gr4ad.generation.v1 import generation_pb2
from gr4ad.sid.v1 import sid_pb2
from gr4ad_runtime.errors import InvalidArgumentError
from gr4ad_runtime.validation import validate


def request(events: int = 1, **changes: object) -> generation_pb2.GenerateAdsRequest:
    made = generation_pb2.GenerateAdsRequest(**{"request_id": "r", "candidate_count": 8, **changes})
    made.user_context.SetInParent()
    for number in range(events):
        made.user_context.history.add(ad_id=f"a{number}", behavior=2)
    return made


def test_a_right_message_passes() -> None:
    validate(request())


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (request(candidate_count=513), "candidate_count", "513"),
        (request(request_id=""), "request_id", "(empty)"),
        (request(events=257), "user_context.history", "257 items"),
        (request(events=0), "user_context", "invalid"),
        (generation_pb2.GenerateAdsRequest(request_id="r", candidate_count=1), "user_context", "missing"),
        (sid_pb2.UpdateAdRequest(ad_id="a", bid_micros=-5), "bid_micros", "-5"),
        (sid_pb2.UpdateAdRequest(ad_id="a"), "request", "invalid"),
    ],
)
def test_field_value_and_rule_are_named(message: object, field: str, value: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        validate(message)
    assert raised.value.message.startswith(f"{field}: {value}: ")
    assert raised.value.violations[0][0] == field


def test_the_path_leads_into_lists() -> None:
    ads = [sid_pb2.Ad(ad_id="a"), sid_pb2.Ad(ad_id="b", bid_micros=-1)]
    with pytest.raises(InvalidArgumentError, match=r"^ads\[1\]\.bid_micros: -1: "):
        validate(sid_pb2.BatchCreateAdSidsRequest(request_id="r", ads=ads))


def test_many_violations_are_counted() -> None:
    ads = [sid_pb2.Ad(ad_id=str(number), bid_micros=-1) for number in range(9)]
    with pytest.raises(InvalidArgumentError, match="; and 4 more$") as raised:
        validate(sid_pb2.BatchCreateAdSidsRequest(request_id="r", ads=ads))
    assert len(raised.value.violations) == 9
