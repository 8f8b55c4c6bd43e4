import numpy as np
import pytest
from gr4ad_core.learning import swing as swing_module
from gr4ad_core.learning.interaction_rows import CLICK, CONVERSION, IMPRESSION, Interactions
from gr4ad_core.learning.swing import strongest, swing
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.oracles import swing_loop

ITEMS = 6


def interactions_of(chosen: list[list[int]], behaviors: list[int] | None = None) -> Interactions:
    items = np.array([item for user in chosen for item in user], dtype=np.int64)
    return Interactions(
        user_ids=[f"u{number}" for number in range(len(chosen))],
        offsets=np.cumsum([0, *map(len, chosen)]),
        item_ids=[f"i{number}" for number in range(ITEMS)],
        items=items,
        behaviors=np.full(len(items), CONVERSION) if behaviors is None else np.array(behaviors),
        timestamps=np.full(len(items), np.nan),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=6), min_size=1, max_size=8), st.sampled_from([0.5, 1.0]))
def test_is_the_formula(chosen: list[list[int]], alpha: float) -> None:
    found = swing(interactions_of(chosen), seed=0, alpha=alpha).toarray()
    sets = [set(user) for user in chosen]
    for i in range(ITEMS):
        assert found[i, i] == 0.0
        for j in range(ITEMS):
            if i != j:
                assert found[i, j] == pytest.approx(swing_loop.swing(sets, i, j, alpha), rel=1e-5)


def test_chunks_of_users_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    interactions = interactions_of([rng.integers(0, ITEMS, 4).tolist() for _ in range(30)])
    whole = swing(interactions, seed=0).toarray()
    monkeypatch.setattr(swing_module, "CHUNK", 7)
    np.testing.assert_allclose(swing(interactions, seed=0).toarray(), whole, rtol=1e-6)


def test_what_was_only_shown_does_not_count() -> None:
    chosen = [[0, 1, 2], [0, 1, 2]]
    found = swing(interactions_of(chosen, [CLICK, CLICK, IMPRESSION] * 2), seed=0).toarray()
    assert found[0, 1] > 0.0
    assert found[:, 2].sum() == 0.0


def test_of_an_item_that_many_chose_some_users_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swing_module, "USERS_PER_ITEM", 4)
    interactions = interactions_of([[0, 1]] * 10)
    drawn = swing(interactions, seed=3)
    # At most 4 users of each item are left, hence at most 6 pairs of users, each of weight 1/2 · 1/3.
    assert 0.0 <= drawn.toarray()[0, 1] <= 6 / 6 + 1e-6
    np.testing.assert_array_equal(drawn.toarray(), swing(interactions, seed=3).toarray())


def test_the_strongest_partners_stay_and_ties_go_to_the_lower_item() -> None:
    strength = sparse.csr_array(np.array([[0, 2, 3, 3], [2, 0, 0, 0], [3, 0, 0, 1], [3, 0, 1, 0]], dtype=np.float32))
    kept = strongest(strength, 2)
    np.testing.assert_array_equal(kept.toarray() > 0, [[0, 0, 1, 1], [1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0]])
    assert strongest(strength, 1).toarray()[0].tolist() == [0.0, 0.0, 3.0, 0.0]


def test_refuses_an_alpha_that_can_divide_by_zero() -> None:
    with pytest.raises(ValueError, match=r"alpha: 0\.0: give a positive number"):
        swing(interactions_of([[0, 1]]), seed=0, alpha=0.0)
