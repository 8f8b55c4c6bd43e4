"""Popularity and the transition graph, held to their definitions."""

from collections.abc import Sequence

import numpy as np
from gr4ad_core.learning.data_folder import Interactions
from gr4ad_tools import baselines
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.naive_baselines import popularity, transition_rank

ITEMS = 9


def interactions(sequences: Sequence[Sequence[int]], behaviors: Sequence[Sequence[int]] | None = None) -> Interactions:
    lengths = [len(sequence) for sequence in sequences]
    items = np.array([item for sequence in sequences for item in sequence], dtype=np.int64)
    kinds = [kind for sequence in behaviors for kind in sequence] if behaviors is not None else [2] * len(items)
    return Interactions(
        user_ids=[f"u{user}" for user in range(len(sequences))],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=[f"i{item}" for item in range(ITEMS)],
        items=items,
        behaviors=np.array(kinds, dtype=np.int64),
        timestamps=np.full(len(items), np.nan),
    )


REPEATING = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=7), min_size=1, max_size=6)
ONCE_EACH = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=7, unique=True), min_size=1, max_size=6)


@given(REPEATING | ONCE_EACH, st.integers(1, 12))
def test_the_transition_graph_ranks_as_the_definition_says(sequences: list[list[int]], k: int) -> None:
    histories = [np.array(sequence, dtype=np.int64) for sequence in sequences]

    ranked = baselines.transition_graph_rank(interactions(sequences), histories, k)

    for row, history in zip(ranked.tolist(), sequences, strict=True):
        expected = transition_rank(
            sequences, history, ITEMS, k, window=baselines.WINDOW, last=baselines.LAST_ITEMS, decay=baselines.DECAY
        )
        assert row == expected + [-1] * (k - len(expected))


@given(REPEATING | ONCE_EACH, st.integers(1, 12))
def test_popularity_ranks_by_count(sequences: list[list[int]], k: int) -> None:
    train = interactions(sequences)
    order = popularity(sequences, ITEMS)
    again = any(len(set(sequence)) < len(sequence) for sequence in sequences)
    histories = [np.array(sequence, dtype=np.int64) for sequence in sequences]

    assert baselines.popularity_rank(train, k).tolist() == (order + [-1] * k)[:k]
    for row, history in zip(baselines.popularity_rank(train, k, histories).tolist(), sequences, strict=True):
        left = [item for item in order if again or item not in history]
        assert row == (left + [-1] * k)[:k]


def test_only_chosen_events_count() -> None:
    train = interactions([[0, 0, 0, 1, 2], [0, 1]], [[1, 1, 1, 2, 3], [1, 3]])

    assert baselines.popularity_counts(train).tolist() == [0, 2, 1, 0, 0, 0, 0, 0, 0]
    ranked = baselines.transition_graph_rank(train, [np.array([1])], 2)
    assert ranked.tolist() == [[2, 0]], "item 0 was only shown: it fills a place, after the item that followed"


def test_chosen_histories_end_before_the_target() -> None:
    everything = interactions([[4, 5, 6], [7, 8, 1, 2]], [[1, 2, 2], [2, 3, 1, 2]])

    histories = baselines.chosen_histories(everything, np.array([0, 1]), np.array([2, 6]))

    assert [history.tolist() for history in histories] == [[5], [7, 8]]


def test_the_test_item_is_no_part_of_the_ranking() -> None:
    # Training holds nothing but 0 → 1: a target that follows 1 elsewhere cannot be known.
    ranked = baselines.transition_graph_rank(interactions([[0, 1], [1]]), [np.array([1])], 3)

    assert ranked.tolist() == [[0, 2, 3]]
