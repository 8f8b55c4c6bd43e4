"""Leave-one-out: a user's last chosen ad is what a policy must find, and nothing of it may be seen before it is scored.

A chosen ad is a click or a conversion. Of a user with chosen events c_1 … c_n (n ≥ 3):

- the test target is the ad of c_n, asked for at the time of c_n with everything before c_n as history;
- c_{n−1} is left for validation;
- training sees only what came before c_{n−1}.

The training part is written as a folder of its own, so that whoever trains cannot see the rest.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import CLICK, CONVERSION, IMPRESSION, Interactions
from numpy.typing import NDArray

HISTORY_LIMIT = 256  # the contract's limit
EVENT_TYPES = {IMPRESSION: "impression", CLICK: "click", CONVERSION: "conversion"}


@dataclass(frozen=True)
class LeaveOneOut:
    """A split of interactions.

    Attributes:
        interactions: Everything.
        train: What a policy may be trained on.
        users_M: Users that are scored, as indices into `interactions.user_ids`.
        targets_M: Their test events, as indices into the events.
        validation_M: Their validation events, likewise.
    """

    interactions: Interactions
    train: Interactions
    users_M: NDArray[np.int64]
    targets_M: NDArray[np.int64]
    validation_M: NDArray[np.int64]

    @property
    def target_items_M(self) -> NDArray[np.int64]:
        """Items to find, as indices into `interactions.item_ids`."""
        return self.interactions.items[self.targets_M]

    @property
    def later_day_M(self) -> NDArray[np.bool_]:
        """Whether the target's day is later than that of the event before it; false where either is unknown."""
        days = np.floor(self.interactions.timestamps / 86400.0)
        return np.asarray(days[self.targets_M] > days[self.targets_M - 1])

    def histories(self, limit: int = HISTORY_LIMIT) -> list[NDArray[np.int64]]:
        """Return each scored user's latest items before the target, oldest first."""
        starts = np.maximum(self.interactions.offsets[self.users_M], self.targets_M - limit)
        return [self.interactions.items[start:end] for start, end in zip(starts, self.targets_M, strict=True)]

    def contexts(self) -> list[type_pb2.UserContext]:
        """Return the contexts to ask with, one per scored user."""
        return self._before(self.targets_M)

    def validation_contexts(self) -> list[type_pb2.UserContext]:
        """Return the contexts of the same users before their validation events."""
        return self._before(self.validation_M)

    def _before(self, events_M: NDArray[np.int64]) -> list[type_pb2.UserContext]:
        starts = self.interactions.offsets[self.users_M]
        return [
            user_context(self.interactions, int(user), int(start), int(end), float(self.interactions.timestamps[end]))
            for user, start, end in zip(self.users_M, starts, events_M, strict=True)
        ]


def user_context(
    interactions: Interactions, user: int, start: int, end: int, request_time: float
) -> type_pb2.UserContext:
    """Return a user's context after the events [start, end), the latest 256 of them; a time of NaN is left out."""
    start = max(start, end - HISTORY_LIMIT)
    context = type_pb2.UserContext(user_id=interactions.user_ids[user], cold_start=start == end)
    for event in range(start, end):
        past = context.history.add(
            ad_id=interactions.item_ids[interactions.items[event]], behavior=int(interactions.behaviors[event])
        )
        if not math.isnan(interactions.timestamps[event]):
            past.event_time.FromSeconds(int(interactions.timestamps[event]))
    if not math.isnan(request_time):
        context.request_time.FromSeconds(int(request_time))
    return context


def leave_one_out(interactions: Interactions) -> LeaveOneOut:
    """Split interactions; users with fewer than three chosen events are trained on in full and not scored."""
    users, targets, validation, ends = [], [], [], interactions.offsets[1:].copy()
    for user in range(len(interactions.user_ids)):
        start, end = int(interactions.offsets[user]), int(interactions.offsets[user + 1])
        chosen = start + np.flatnonzero(interactions.behaviors[start:end] >= CLICK)
        if len(chosen) < 3:
            continue
        users.append(user)
        targets.append(int(chosen[-1]))
        validation.append(int(chosen[-2]))
        ends[user] = chosen[-2]
    columns = (np.array(column, dtype=np.int64) for column in (users, targets, validation))
    return LeaveOneOut(interactions, cut(interactions, ends), *columns)


def cut(interactions: Interactions, ends: NDArray[np.int64]) -> Interactions:
    """Return what came before event `ends[u]` of each user u; users with nothing left stay as empty sequences."""
    starts = interactions.offsets[:-1]
    kept = np.zeros(len(interactions.items), dtype=bool)
    for start, end in zip(starts, ends, strict=True):
        kept[start:end] = True
    return Interactions(
        user_ids=interactions.user_ids,
        offsets=np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64),
        item_ids=interactions.item_ids,
        items=interactions.items[kept],
        behaviors=interactions.behaviors[kept],
        timestamps=interactions.timestamps[kept],
    )


def write_training_folder(source: Path, train: Interactions, folder: Path) -> None:
    """Write a data folder that holds all items of `source` and only the interactions of `train`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("items.jsonl", "items.jsonl.gz"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["user_id", "item_id", "position", "timestamp", "event_type"])
    writer.writerows(_rows(train))
    partial = folder / ".interactions.csv.gz.partial"
    partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    partial.replace(folder / "interactions.csv.gz")


def _rows(train: Interactions) -> Sequence[tuple[str, str, int, str, str]]:
    rows = []
    for user, user_id in enumerate(train.user_ids):
        start, end = int(train.offsets[user]), int(train.offsets[user + 1])
        for position, event in enumerate(range(start, end)):
            time = train.timestamps[event]
            rows.append(
                (
                    user_id,
                    train.item_ids[train.items[event]],
                    position,
                    "" if math.isnan(time) else str(int(time)),
                    EVENT_TYPES[int(train.behaviors[event])],
                )
            )
    return rows
