"""`interactions.csv`: what users did, one event a row, a user's rows together and in order."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.learning.folder_problem import Problem, shown
from gr4ad_core.learning.item_lines import ID_LENGTH

COLUMNS = ("user_id", "item_id", "position", "timestamp", "event_type")
IMPRESSION, CLICK, CONVERSION = 1, 2, 3
BEHAVIORS = {
    "impression": IMPRESSION,
    "click": CLICK,
    "conversion": CONVERSION,
    "review": CONVERSION,
    "purchase": CONVERSION,
}
LATEST_TIME = 253_402_300_799.0  # the end of the year 9999: later times are milliseconds by mistake


@dataclass(frozen=True)
class Interactions:
    """Users' event sequences, one after the other (U users, N events).

    Attributes:
        user_ids: Users in file order.
        offsets: Events of user u are offsets[u] … offsets[u + 1] − 1, int64 [U + 1].
        item_ids: Vocabulary: the ids of all items of the folder, in the order of its items file.
        items: Item of each event, index into `item_ids`, int64 [N].
        behaviors: 1 impression, 2 click, 3 conversion, int64 [N].
        timestamps: Unix time in seconds, NaN where unknown, float64 [N].
    """

    user_ids: list[str]
    offsets: NDArray[np.int64]
    item_ids: list[str]
    items: NDArray[np.int64]
    behaviors: NDArray[np.int64]
    timestamps: NDArray[np.float64]


def hold_out(interactions: Interactions, n: int) -> Interactions:
    """Drop each user's last `n` events; users with no more than `n` stay with an empty sequence.

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"n is {n}: hold out 0 or more events")
    lengths_U = np.diff(interactions.offsets)
    kept_U = np.maximum(lengths_U - n, 0)
    rank_N = np.arange(len(interactions.items)) - np.repeat(interactions.offsets[:-1], lengths_U)
    keep_N = rank_N < np.repeat(kept_U, lengths_U)
    return Interactions(
        user_ids=interactions.user_ids,
        offsets=np.concatenate([[0], np.cumsum(kept_U)]).astype(np.int64),
        item_ids=interactions.item_ids,
        items=interactions.items[keep_N],
        behaviors=interactions.behaviors[keep_N],
        timestamps=interactions.timestamps[keep_N],
    )


def parse_interactions(file: str, text: str, item_ids: list[str], *, whole: bool) -> tuple[Interactions, list[Problem]]:
    """Parse an interactions file against the vocabulary of its folder.

    Args:
        file: Name of the file, for problems.
        text: Its text.
        item_ids: The vocabulary.
        whole: Whether that is all of it; an empty rest of a damaged file is no further problem.

    Returns:
        The interactions, which mean something only where there is no problem, and the problems.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    problems: list[Problem] = []
    lines: list[int] = []
    rows: list[list[str]] = []
    header: list[str] | None = None
    try:
        header = next(reader, None)
        if header is None and not whole:
            return _nothing(item_ids), []
        missing = [name for name in COLUMNS if name not in (header or [])]
        if header is None or missing:
            remedy = f"start the file with the header {','.join(COLUMNS)}"
            return _nothing(item_ids), [
                Problem(file, 1, "header", f"without {', '.join(missing)}" if header else "missing", remedy)
            ]
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
                lines.append(reader.line_num)
            elif row:
                remedy = f"write {len(header)} columns as in the header, it has {len(row)}"
                problems.append(Problem(file, reader.line_num, "row", shown(",".join(row)), remedy))
    except csv.Error as error:
        problems.append(Problem(file, reader.line_num, "row", "not CSV", f"mend the quoting ({error})"))
    if header is None or not rows:
        if whole and not problems:
            problems.append(Problem(file, 1, "rows", "missing", "write one row per event below the header"))
        return _nothing(item_ids), problems
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    return _Rows(file, lines, columns, item_ids, problems).interactions(), problems


class _Rows:
    """Columns of one file on their way to arrays; what is wrong goes to `problems`."""

    def __init__(
        self,
        file: str,
        lines: list[int],
        columns: dict[str, tuple[str, ...]],
        item_ids: list[str],
        problems: list[Problem],
    ) -> None:
        self.file, self.lines, self.columns, self.item_ids, self.problems = file, lines, columns, item_ids, problems
        self.good_N = np.ones(len(lines), dtype=bool)

    def interactions(self) -> Interactions:
        user_ids: dict[str, int] = {}
        users_N = np.array([user_ids.setdefault(user, len(user_ids)) for user in self.columns["user_id"]])
        item_index = {item_id: number for number, item_id in enumerate(self.item_ids)}
        items_N = self._look_up("item_id", item_index, "add the item to the items file or remove the row")
        behaviors_N = self._look_up("event_type", BEHAVIORS, f"use one of {', '.join(BEHAVIORS)}")
        positions_N = self._positions()
        timestamps_N = self._timestamps()
        too_long = np.array([not 0 < len(user) <= ID_LENGTH for user in user_ids])
        self._report(np.flatnonzero(too_long[users_N]), "user_id", f"give an id of 1 to {ID_LENGTH} characters")
        self._check_order(users_N, positions_N, timestamps_N)
        self.problems.sort()
        lengths_U = np.bincount(users_N, minlength=len(user_ids))
        return Interactions(
            user_ids=list(user_ids),
            offsets=np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
            item_ids=self.item_ids,
            items=items_N,
            behaviors=behaviors_N,
            timestamps=timestamps_N,
        )

    def _report(self, rows: Sequence[int] | NDArray[np.int64], field: str, remedy: str) -> None:
        column = self.columns[field]
        for row in rows:
            self.good_N[row] = False
            self.problems.append(Problem(self.file, self.lines[row], field, shown(column[row]), remedy))

    def _look_up(self, field: str, index: dict[str, int], remedy: str) -> NDArray[np.int64]:
        numbers = [index.get(value, -1) for value in self.columns[field]]
        found_N = np.array(numbers, dtype=np.int64)
        self._report(np.flatnonzero(found_N < 0), field, remedy)
        return found_N

    def _positions(self) -> NDArray[np.int64]:
        column = self.columns["position"]
        bad = [row for row, value in enumerate(column) if not (value.isascii() and value.isdigit() and len(value) < 19)]
        self._report(bad, "position", "give an integer of 0 or more")
        if bad:
            wrong = set(bad)
            column = tuple("0" if row in wrong else value for row, value in enumerate(column))
        return np.array([int(value) for value in column], dtype=np.int64)

    def _timestamps(self) -> NDArray[np.float64]:
        column = self.columns["timestamp"]
        times_N = np.array([_time(value) for value in column])
        given_N = np.array([bool(value) for value in column])
        with np.errstate(invalid="ignore"):
            bad_N = given_N & ~((times_N >= 0) & (times_N <= LATEST_TIME))
        self._report(np.flatnonzero(bad_N), "timestamp", "give unix time in seconds, or leave it empty where unknown")
        return times_N

    def _check_order(
        self, users_N: NDArray[np.int64], positions_N: NDArray[np.int64], timestamps_N: NDArray[np.float64]
    ) -> None:
        # Users are numbered by first appearance: a start of a run whose number is not a new one is a return.
        run_start_N = np.diff(users_N, prepend=-1) != 0
        seen_N = np.maximum.accumulate(users_N)
        returned_N = run_start_N & (users_N <= np.concatenate([[-1], seen_N[:-1]]))
        self._report(np.flatnonzero(returned_N), "user_id", "keep all rows of a user together: it has rows further up")
        both_N = ~run_start_N & self.good_N
        both_N[1:] &= self.good_N[:-1]
        rising_N = np.diff(positions_N, prepend=-1) > 0
        self._report(np.flatnonzero(both_N & ~rising_N), "position", "let it rise from row to row inside a user")
        # Unknown times are skipped: each known time is held against the latest known one before it, inside the user.
        known = np.flatnonzero(~np.isnan(timestamps_N) & self.good_N)
        earlier = (np.diff(timestamps_N[known]) < 0) & (users_N[known[1:]] == users_N[known[:-1]])
        self._report(known[1:][earlier], "timestamp", "order a user's rows by time: it is earlier than the row before")


def _time(value: str) -> float:
    try:
        return float(value) if value else float("nan")
    except ValueError:
        return float("nan")


def _nothing(item_ids: list[str]) -> Interactions:
    none = np.zeros(0, dtype=np.int64)
    return Interactions([], np.zeros(1, dtype=np.int64), item_ids, none, none, np.zeros(0))
