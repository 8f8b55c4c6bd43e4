"""Translates between the contract's messages and what the log stores."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.reward.v1 import reward_pb2
from gr4ad_runtime.errors import InvalidArgumentError

from reward_logger.event_store import Feedback, Impression
from reward_logger.list_reader import Outcome, RewardedList
from reward_logger.list_store import ServedList


def served_list(message: reward_pb2.ServedList, field: str) -> ServedList:
    """Make a list storable.

    Raises:
        InvalidArgumentError: One of its ids or its time cannot be stored.
    """
    return ServedList(
        request_id=_identifier(message.request_id, f"{field}.request_id"),
        message=message.SerializeToString(),
        traceparent=message.traceparent,
        user_id=_identifier(message.user_context.user_id, f"{field}.user_context.user_id"),
        serve_time=_time(message.serve_time, f"{field}.serve_time"),
    )


def impression(message: reward_pb2.Impression, field: str, traceparent: str) -> Impression:
    """Make an impression storable; the traceparent is that of the call that reports it.

    Raises:
        InvalidArgumentError: One of its ids or its time cannot be stored.
    """
    return Impression(
        event_id=_identifier(message.event_id, f"{field}.event_id"),
        request_id=_identifier(message.request_id, f"{field}.request_id"),
        ad_id=_identifier(message.ad_id, f"{field}.ad_id"),
        position=message.position,
        event_time=_time(message.event_time, f"{field}.event_time"),
        traceparent=traceparent,
    )


def feedback(message: reward_pb2.Feedback, field: str, traceparent: str) -> Feedback:
    """Make a response storable; the traceparent is that of the call that reports it.

    Raises:
        InvalidArgumentError: One of its ids or its time cannot be stored.
    """
    return Feedback(
        event_id=_identifier(message.event_id, f"{field}.event_id"),
        type=message.type,
        request_id=_identifier(message.request_id, f"{field}.request_id"),
        ad_id=_identifier(message.ad_id, f"{field}.ad_id"),
        revenue_micros=message.revenue_micros,
        event_time=_time(message.event_time, f"{field}.event_time"),
        user_id="" if message.request_id else _identifier(message.user_id, f"{field}.user_id"),
        traceparent=traceparent,
    )


def rewarded_list(rewarded: RewardedList) -> reward_pb2.RewardedList:
    """Return a list with its outcomes in the order of its candidates. Events of ads it does not hold are left out."""
    message = reward_pb2.RewardedList()
    message.served_list.MergeFromString(rewarded.message)
    if rewarded.outcomes:
        for ad_id in dict.fromkeys(candidate.ad_id for candidate in message.served_list.candidates):
            if ad_id in rewarded.outcomes:
                message.outcomes.append(_outcome(ad_id, rewarded.outcomes[ad_id]))
    message.traceparents.extend(rewarded.traceparents)
    return message


def _outcome(ad_id: str, outcome: Outcome) -> reward_pb2.Outcome:
    return reward_pb2.Outcome(
        ad_id=ad_id,
        impression_count=outcome.impressions,
        click_count=outcome.clicks,
        conversion_count=outcome.conversions,
        revenue_micros=outcome.revenue_micros,
        ecpm_micros=1000 * outcome.revenue_micros // max(1, outcome.impressions),
    )


def _identifier(value: str, field: str) -> str:
    if "\0" in value:
        raise InvalidArgumentError(field, repr(value), "holds a NUL character, which cannot be stored: leave it out")
    return value


def _time(value: Timestamp, field: str) -> datetime:
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        seconds = f"{value.seconds} s {value.nanos} ns"
        raise InvalidArgumentError(field, seconds, "give a time of the years 1 to 9999, nanos below 10^9") from error
