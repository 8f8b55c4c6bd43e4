import pytest
from gr4ad_core.decoding.beam_schedule import (
    AS_SCHEDULED,
    SCALE_STEP,
    Allowance,
    BeamPlan,
    Constraint,
    choose_scale,
    plan_widths,
    scaled_widths,
    scheduled_widths,
)
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


def test_a_scale_widens_or_narrows_every_level_but_keeps_the_candidates() -> None:
    assert scaled_widths((32, 64, 128), 1.6, 20) == (52, 103, 205)
    assert scaled_widths((32, 64, 128), 1.0, 20) == (32, 64, 128)
    assert scaled_widths((32, 64, 128), 0.25, 20) == (8, 16, 32)
    assert scaled_widths((32, 64, 128), 0.25, 100) == (8, 16, 100)
    assert scaled_widths((1, 2), 0.25, 1) == (1, 1)


@given(counts, st.integers(1, 512), st.floats(0.05, 4.0), st.floats(0.05, 4.0))
def test_wider_scales_give_wider_levels(base: list[int], candidate_count: int, one: float, other: float) -> None:
    scheduled = scheduled_widths(tuple(base), candidate_count)
    narrow, wide = (scaled_widths(scheduled, factor, candidate_count) for factor in sorted((one, other)))
    assert all(few <= many for few, many in zip(narrow, wide, strict=True))
    assert min(narrow) >= 1
    assert narrow[-1] >= candidate_count
    assert scaled_widths(scheduled, 1.0, candidate_count) == scheduled


PLENTY, NONE = Allowance(1e9, 1.0, 1.0), Allowance(0.0, 1.0, 1.0)


def test_spare_capacity_widens_and_short_time_narrows() -> None:
    def chosen(spare: Allowance, own: Allowance, *queue: Allowance) -> tuple[float, Constraint]:
        scale = choose_scale(0.25, 1.6, spare, own, queue)
        return pytest.approx(scale.factor), scale.constrained_by

    assert chosen(PLENTY, PLENTY) == (1.6, Constraint.IDLE)
    assert chosen(Allowance(2.3, 1.0, 1.0), PLENTY) == (1.3, Constraint.IDLE)
    assert chosen(PLENTY, Allowance(2.3, 1.0, 1.0), PLENTY) == (1.3, Constraint.IDLE)
    assert chosen(NONE, PLENTY) == (1.0, Constraint.SCHEDULE)
    assert chosen(PLENTY, Allowance(1.5, 1.0, 1.0), PLENTY) == (0.5, Constraint.LATENCY_BUDGET)
    assert chosen(NONE, PLENTY, PLENTY, Allowance(1.5, 1.0, 1.0)) == (0.5, Constraint.LOAD)
    assert chosen(NONE, PLENTY, NONE) == (0.25, Constraint.LOAD)


def test_bounds_of_one_fix_the_widths() -> None:
    assert choose_scale(1.0, 1.0, PLENTY, NONE, [NONE]) == AS_SCHEDULED
    assert choose_scale(1.0, 1.0, PLENTY, PLENTY, []) == AS_SCHEDULED


times = st.floats(0, 3)
allowances = st.builds(Allowance, times, times, times)


@given(st.floats(0.05, 1.0), st.floats(1.0, 3.0), allowances, allowances, st.lists(allowances, max_size=4), times)
def test_the_scale_keeps_its_bounds_and_no_more_time_narrows_it(
    least: float, most: float, spare: Allowance, own: Allowance, queue: list[Allowance], more: float
) -> None:
    scale = choose_scale(least, most, spare, own, queue)
    factor = scale.factor
    assert least <= factor <= most
    assert (factor > 1.0) == (scale.constrained_by is Constraint.IDLE)
    assert (factor == 1.0) == (scale.constrained_by is Constraint.SCHEDULE)
    for allowance in (own, *queue):  # what was chosen is in time, or the narrowest
        assert factor == least or allowance.fixed_s + factor * allowance.scaled_s <= allowance.time_s + 1e-6
    if factor > 1.0:
        assert spare.fixed_s + factor * spare.scaled_s <= spare.time_s + 1e-6
    if least < factor < most and factor != 1.0:
        assert factor / SCALE_STEP == pytest.approx(round(factor / SCALE_STEP))

    def eased(allowance: Allowance) -> Allowance:
        return Allowance(allowance.time_s + more, allowance.fixed_s, allowance.scaled_s)

    assert choose_scale(least, most, eased(spare), eased(own), map(eased, queue)).factor >= factor
