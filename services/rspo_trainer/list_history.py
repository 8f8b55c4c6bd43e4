"""The history behind a served list, in SIDs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.reward.v1 import reward_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.sampling import AdTable
from gr4ad_core.model.history import UserHistory


def history_of(served: reward_pb2.ServedList, ads: AdTable, row_of: Mapping[str, int]) -> tuple[UserHistory, int]:
    """Return what was known of a list's user, and how many events were left out since their ad is unknown.

    Args:
        served: The list.
        ads: The catalogue.
        row_of: Row of each ad in it, by ad id.
    """
    context = served.user_context
    events = [(row_of.get(event.ad_id, -1), event) for event in context.history]
    known = [(row, event) for row, event in events if row >= 0]
    rows = np.fromiter((row for row, _ in known), np.int64, len(known))
    history = UserHistory(
        sids=ads.sids[rows],
        behaviors=np.fromiter((event.behavior for _, event in known), np.int64, len(known)),
        event_times=np.fromiter((_event_time(event) for _, event in known), np.float64, len(known)),
        request_time=_seconds(context.request_time if context.HasField("request_time") else served.serve_time),
        features=dict(context.features),
    )
    return history, len(events) - len(known)


def _event_time(event: type_pb2.HistoryEvent) -> float:
    return _seconds(event.event_time) if event.HasField("event_time") else float("nan")


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos * 1e-9
