"""The split keeps the test target, and the validation one, out of everything that a trainer or a history sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gr4ad_core.learning.data_folder import CLICK, Interactions, read_interactions
from gr4ad_tools.data import app
from gr4ad_tools.leave_one_out import leave_one_out, write_training_folder
from gr4ad_tools.simulate import Market
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

N_ITEMS = 9
sequences = st.lists(
    st.lists(st.tuples(st.integers(0, N_ITEMS - 1), st.integers(1, 3), st.booleans()), max_size=12), max_size=6
)


def make(users: list[list[tuple[int, int, bool]]]) -> Interactions:
    events = [event for user in users for event in user]
    return Interactions(
        user_ids=[f"u{number}" for number in range(len(users))],
        offsets=np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64),
        item_ids=[f"i{number}" for number in range(N_ITEMS)],
        items=np.array([item for item, _, _ in events], dtype=np.int64),
        behaviors=np.array([behavior for _, behavior, _ in events], dtype=np.int64),
        timestamps=np.array([86400.0 * n if known else np.nan for n, (_, _, known) in enumerate(events)]),
    )


@given(sequences)
def test_training_ends_before_the_last_but_one_chosen_event(users: list[list[tuple[int, int, bool]]]) -> None:
    split = leave_one_out(make(users))
    scored = []
    for number, user in enumerate(users):
        chosen = [place for place, (_, behavior, _) in enumerate(user) if behavior >= CLICK]
        start, end = split.train.offsets[number : number + 2]
        kept = user[: chosen[-2]] if len(chosen) >= 3 else user
        assert split.train.items[start:end].tolist() == [item for item, _, _ in kept]
        assert split.train.behaviors[start:end].tolist() == [behavior for _, behavior, _ in kept]
        if len(chosen) >= 3:
            scored.append((number, user[chosen[-1]][0], [item for item, _, _ in user[: chosen[-1]]]))
    assert split.users_M.tolist() == [number for number, _, _ in scored]
    assert split.target_items_M.tolist() == [target for _, target, _ in scored]
    assert [history.tolist() for history in split.histories()] == [history for _, _, history in scored]


@given(sequences)
def test_a_context_holds_what_came_before_the_target_and_no_more(users: list[list[tuple[int, int, bool]]]) -> None:
    split = leave_one_out(make(users))
    for context, user, history, target in zip(
        split.contexts(), split.users_M, split.histories(), split.targets_M, strict=True
    ):
        assert context.user_id == f"u{user}"
        assert [event.ad_id for event in context.history] == [f"i{item}" for item in history]
        times = split.interactions.timestamps[target - len(history) : target]
        assert [event.HasField("event_time") for event in context.history] == (~np.isnan(times)).tolist()
        assert context.HasField("request_time") == (not np.isnan(split.interactions.timestamps[target]))


def test_a_long_history_is_cut_to_its_latest_events() -> None:
    split = leave_one_out(make([[(n % N_ITEMS, 3, True) for n in range(400)]]))
    (context,) = split.contexts()
    assert [event.ad_id for event in context.history] == [f"i{n % N_ITEMS}" for n in range(143, 399)]


def test_a_target_on_a_later_day_is_told_from_one_on_the_same_day() -> None:
    interactions = make([[(0, 3, True), (1, 3, True), (2, 3, True)], [(0, 3, True), (1, 3, True), (2, 3, True)]])
    interactions.timestamps[5] = interactions.timestamps[4] + 60.0
    assert leave_one_out(interactions).later_day_M.tolist() == [True, False]


def test_the_training_folder_reads_back_as_the_training_part(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "items.jsonl").write_text("".join(f'{{"item_id": "i{n}"}}\n' for n in range(N_ITEMS)))
    users = [[(n, 1 + n % 3, n % 2 == 0) for n in range(9)], [], [(3, 2, True)]]
    split = leave_one_out(make(users))
    write_training_folder(source, split.train, tmp_path / "training")
    read = read_interactions(tmp_path / "training")
    lengths = np.diff(split.train.offsets)
    assert read.user_ids == [user for user, length in zip(split.train.user_ids, lengths, strict=True) if length]
    assert read.items.tolist() == split.train.items.tolist()
    assert read.behaviors.tolist() == split.train.behaviors.tolist()
    np.testing.assert_array_equal(read.timestamps, split.train.timestamps)


def test_the_command_writes_the_training_part_and_says_what_is_wrong(tmp_path: Path) -> None:
    source = tmp_path / "source"
    Market("tiny", 1).write_folder(source)
    done = CliRunner().invoke(app, ["hold-out", str(source), str(tmp_path / "training")])
    assert done.exit_code == 0
    split = leave_one_out(read_interactions(source))
    assert read_interactions(tmp_path / "training").items.tolist() == split.train.items.tolist()
    assert f"{len(split.users_M):,} users to score" in " ".join(done.output.split())
    failed = CliRunner().invoke(app, ["hold-out", str(tmp_path / "nowhere"), str(tmp_path / "other")])
    assert failed.exit_code == 1
    assert not (tmp_path / "other").exists()
