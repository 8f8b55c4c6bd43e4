import numpy as np
import pytest
from gr4ad_core.metrics.sid_quality import SidQuality, sid_quality
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import ranking as oracle

SIZES = (3, 2, 4)


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.tuples(*(hnp.arrays(np.int64, n, elements=st.integers(0, size - 1)) for size in SIZES))
    )
)
def test_agrees_with_counting_by_hand(columns: tuple[np.ndarray, ...]) -> None:
    sids = np.stack(columns, axis=1)
    quality = sid_quality(sids, SIZES)
    assert (quality.cpr, quality.col, quality.util) == pytest.approx(
        oracle.sid_figures([tuple(sid) for sid in sids.tolist()], SIZES)
    )


def test_counts_every_ad_of_a_shared_sid() -> None:
    sids = np.array([[0, 0], [0, 0], [0, 0], [1, 1]])
    assert sid_quality(sids, (2, 4)) == SidQuality(cpr=2.0, col=0.75, util=0.25)


@pytest.mark.parametrize(
    ("sids", "message"),
    [
        (np.zeros((2, 2), int), r"sids: shape \(2, 2\): give one row of 3 codes"),
        (np.zeros((0, 3), int), "sids: empty"),
        (np.array([[0, 0, 0], [0, 2, 0]]), r"sids\[1\]\[1\]: 2: codes of level 1 are 0 to 1"),
        (np.array([[0, 0, -1]]), r"sids\[0\]\[2\]: -1: codes of level 2 are 0 to 3"),
    ],
)
def test_refuses_sids_that_do_not_fit(sids: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sid_quality(sids, SIZES)
