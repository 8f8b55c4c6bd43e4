import math

import numpy as np
import pytest
from gr4ad_core.metrics.ranking import ndcg_at_k, recall_at_k
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import ranking as oracle

KS = (1, 3, 10)


@st.composite
def lists(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, width = draw(st.integers(1, 8)), draw(st.integers(0, 6))
    ranked = draw(hnp.arrays(np.int64, (rows, width), elements=st.integers(-1, 5)))
    return ranked, draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 5)))


@given(lists())
def test_agrees_with_counting_by_hand(case: tuple[np.ndarray, np.ndarray]) -> None:
    ranked, target = case
    recall, ndcg = recall_at_k(ranked, target, KS), ndcg_at_k(ranked, target, KS)
    for k in KS:
        assert recall[k] == pytest.approx(oracle.recall(ranked.tolist(), target.tolist(), k))
        assert ndcg[k] == pytest.approx(oracle.ndcg(ranked.tolist(), target.tolist(), k))


def test_discounts_by_position() -> None:
    ranked = np.array([[7, 8, 9], [9, 7, 8], [8, 9, -1]])
    target = np.array([7, 7, 7])
    assert recall_at_k(ranked, target, (1, 2)) == pytest.approx({1: 1 / 3, 2: 2 / 3})
    assert ndcg_at_k(ranked, target, (1, 2)) == pytest.approx({1: 1 / 3, 2: (1 + 1 / math.log2(3)) / 3})


@pytest.mark.parametrize(
    ("ranked", "target", "ks", "message"),
    [
        (np.zeros((2, 3), int), np.zeros(3, int), (5,), r"target: shape \(3,\).*one target per list"),
        (np.zeros((0, 3), int), np.zeros(0, int), (5,), "ranked: empty: give at least one list"),
        (np.zeros((2, 3), int), np.array([0, -1]), (5,), r"target\[1\]: -1: .*-1 means no item"),
        (np.zeros((2, 3), int), np.zeros(2, int), (5, 0), r"ks: \[5, 0\]: give cut-offs of 1 or more"),
    ],
)
def test_refuses_what_cannot_be_measured(ranked: np.ndarray, target: np.ndarray, ks: tuple, message: str) -> None:
    for measure in (recall_at_k, ndcg_at_k):
        with pytest.raises(ValueError, match=message):
            measure(ranked, target, ks)
