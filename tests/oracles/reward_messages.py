"""Messages of the reward log, made from numbers."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.reward.v1 import reward_pb2
from gr4ad.type.v1 import type_pb2


def served_list(
    number: int, ads: Sequence[str] = ("a", "b", "c"), traceparent: str = "", user_id: str = "user"
) -> reward_pb2.ServedList:
    """A list of some ads for a user with one past event."""
    return reward_pb2.ServedList(
        request_id=f"request-{number}",
        user_context=type_pb2.UserContext(
            user_id=user_id,
            history=[
                type_pb2.HistoryEvent(
                    ad_id="past", behavior=type_pb2.BEHAVIOR_CLICK, event_time=Timestamp(seconds=900 + number)
                )
            ],
            features={"hour": "17"},
        ),
        candidates=[
            type_pb2.ScoredAd(
                ad_id=ad, sid=type_pb2.SemanticId(codes=[1, 2, place]), log_prob=-1.5 - place, predicted_ecpm_micros=7
            )
            for place, ad in enumerate(ads)
        ],
        policy=type_pb2.PolicyRef(policy_id="policy", codebook_id="codebook", sha256="0" * 64),
        widths=[4, 8, 16],
        serve_time=Timestamp(seconds=1000 + number, nanos=5),
        traceparent=traceparent,
    )


def impression(event: str, number: int, ad: str, position: int = 0) -> reward_pb2.Impression:
    """An impression of an ad of list `number`."""
    return reward_pb2.Impression(
        event_id=event,
        request_id=f"request-{number}",
        ad_id=ad,
        position=position,
        event_time=Timestamp(seconds=2000 + number),
    )


def feedback(
    event: str,
    number: int,
    ad: str,
    kind: reward_pb2.FeedbackType.ValueType = reward_pb2.FEEDBACK_TYPE_CLICK,
    revenue: int = 0,
) -> reward_pb2.Feedback:
    """A response to an ad of list `number`."""
    return reward_pb2.Feedback(
        event_id=event,
        type=kind,
        request_id=f"request-{number}",
        ad_id=ad,
        revenue_micros=revenue,
        event_time=Timestamp(seconds=3000 + number),
    )
