"""The tracker's side of the loop: what of a served list was shown, and what the user did with it, to the reward log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import grpc
from google.protobuf import timestamp_pb2
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc

from gr4ad_tools.traffic import Answer

BATCH = 500
TIMEOUT_S = 10.0


async def report_outcomes(
    channel: grpc.aio.Channel,
    answers: Sequence[Answer],
    *,
    page_size: int,
    clicked: Callable[[int], set[str]],
    bid_micros: Callable[[str], int],
) -> tuple[int, int]:
    """Report the first `page_size` ads of each answer as shown, and those the user is known to choose as converted.

    Args:
        channel: Channel to the reward logger.
        answers: The served lists.
        page_size: Ads shown of each list.
        clicked: The ads that the user of a visit goes on to choose, by visit.
        bid_micros: What an ad's advertiser pays for it, by ad.

    Returns:
        How many impressions and how many feedback events were acknowledged as stored or as duplicates.
    """
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    now = timestamp_pb2.Timestamp(seconds=int(time.time()))
    impressions: list[reward_pb2.Impression] = []
    feedback: list[reward_pb2.Feedback] = []
    for answer in answers:
        chosen = clicked(answer.visit)
        for position, ad_id in enumerate(answer.ad_ids[:page_size]):
            event_id = f"{answer.request_id}-{position}"
            impressions.append(
                reward_pb2.Impression(
                    event_id=event_id, request_id=answer.request_id, ad_id=ad_id, position=position, event_time=now
                )
            )
            if ad_id in chosen:
                feedback.append(
                    reward_pb2.Feedback(
                        event_id=event_id,
                        type=reward_pb2.FEEDBACK_TYPE_CONVERSION,
                        request_id=answer.request_id,
                        ad_id=ad_id,
                        revenue_micros=bid_micros(ad_id),
                        event_time=now,
                    )
                )
    shown = responded = 0
    for start in range(0, len(impressions), BATCH):
        part = impressions[start : start + BATCH]
        impression_answer = await stub.BatchCreateImpressions(
            reward_pb2.BatchCreateImpressionsRequest(impressions=part), timeout=TIMEOUT_S
        )
        shown += impression_answer.stored_count + impression_answer.duplicate_count
    for start in range(0, len(feedback), BATCH):
        feedback_answer = await stub.BatchCreateFeedback(
            reward_pb2.BatchCreateFeedbackRequest(feedback=feedback[start : start + BATCH]), timeout=TIMEOUT_S
        )
        responded += feedback_answer.stored_count + feedback_answer.duplicate_count
    return shown, responded
