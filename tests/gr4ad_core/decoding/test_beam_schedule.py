import pytest
from gr4ad_core.decoding.beam_schedule import BeamPlan, Constraint, plan_widths, scheduled_widths
from hypothesis import given
from hypothesis import strategies as st

counts = st.lists(st.integers(1, 600), min_size=1, max_size=5)


def test_the_policys_widths_are_used_where_enough_is_live() -> None:
    plan = plan_widths(scheduled_widths((32, 64, 128), candidate_count=50), (40, 900, 12_000))
    assert plan == BeamPlan((32, 64, 128), Constraint.SCHEDULE)


def test_no_level_is_wider_than_what_is_live() -> None:
    plan = plan_widths(scheduled_widths((32, 64, 128), candidate_count=50), (10, 64, 90))
    assert plan == BeamPlan((10, 64, 90), Constraint.LIVE_PREFIXES)


def test_more_candidates_than_the_last_width_widen_every_level_alike() -> None:
    assert scheduled_widths((32, 64, 128), candidate_count=320) == (80, 160, 320)


def test_nothing_live_means_no_beams() -> None:
    assert plan_widths((2, 4), (0, 0)) == BeamPlan((0, 0), Constraint.LIVE_PREFIXES)


@given(counts, st.data(), st.integers(1, 512))
def test_widths_are_bounded_by_what_is_live_and_hold_the_candidates(
    base: list[int], data: st.DataObject, candidate_count: int
) -> None:
    live = data.draw(st.lists(st.integers(0, 1000), min_size=len(base), max_size=len(base)))

    scheduled = scheduled_widths(tuple(base), candidate_count)
    plan = plan_widths(scheduled, tuple(live))

    assert all(width <= most for width, most in zip(plan.widths, live, strict=True))
    assert plan.widths[-1] >= min(candidate_count, live[-1])
    assert all(width >= min(b, most) for width, b, most in zip(plan.widths, base, live, strict=True))
    assert (plan.constrained_by is Constraint.LIVE_PREFIXES) == (plan.widths != scheduled)


@pytest.mark.parametrize(
    ("base", "candidate_count", "message"),
    [
        ((), 1, r"base_widths: \(\): give one positive width per level"),
        ((4, 0), 1, r"base_widths: \(4, 0\)"),
        ((4, 8), 0, "candidate_count: 0: ask for at least 1"),
    ],
)
def test_refuses_a_schedule_without_sense(base: tuple[int, ...], candidate_count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduled_widths(base, candidate_count)


def test_refuses_counts_of_other_levels() -> None:
    with pytest.raises(ValueError, match=r"live_counts: \(1,\): give one count for each of the 2 levels"):
        plan_widths((4, 8), (1,))
