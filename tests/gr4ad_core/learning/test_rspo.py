"""RSPO and DPO against their loop forms, their gradients, and the bound that RSPO is made for."""

from __future__ import annotations

import math

import pytest
import torch
from gr4ad_core.learning.rspo import RewardedLists, RspoConfig, dpo_losses, lambda_weights, rspo_losses
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import rspo_loop

CONFIG = RspoConfig(beta=0.7, reference_gate=0.5)
# Few distinct rewards, so that ties are frequent; some worthless ones.
VALUES = st.sampled_from([0.0, 0.0, 1.0, 2.5, 1e6])
LOG_P = st.floats(-30.0, 0.0)
A_LIST = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(LOG_P, min_size=n, max_size=n),
        st.one_of(st.none(), st.lists(LOG_P, min_size=n, max_size=n)),
        st.lists(VALUES, min_size=n, max_size=n),
    )
)
LISTS = st.lists(A_LIST, min_size=1, max_size=4)


def padded(lists: list[tuple[list[float], list[float] | None, list[float]]]) -> RewardedLists:
    """Put lists of (log p, log p_ref, rewards) into tensors; what lies in the padding must not matter."""
    longest = max(len(values) for _, _, values in lists) + 1

    def rows(part: list[list[float]], fill: float) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in part], dtype=torch.float64)

    return RewardedLists(
        log_p_BN=rows([log_p for log_p, _, _ in lists], 3.0).requires_grad_(),
        log_ref_BN=rows([ref if ref is not None else [0.0] * len(log_p) for log_p, ref, _ in lists], -5.0),
        has_ref_B=torch.tensor([ref is not None for _, ref, _ in lists]),
        values_BN=rows([values for _, _, values in lists], 7.0),
        mask_BN=torch.tensor([[n < len(values) for n in range(longest)] for _, _, values in lists]),
    )


@given(lists=LISTS)
@settings(max_examples=150, deadline=None)
def test_losses_equal_their_loop_form(lists):
    losses_BN, paired_BN = rspo_losses(padded(lists), CONFIG)
    for row, (log_p, log_ref, values) in enumerate(lists):
        expected = rspo_loop.item_losses(log_p, log_ref, values, CONFIG.beta, CONFIG.reference_gate)
        n = len(values)
        assert paired_BN[row].tolist() == [loss is not None for loss in expected] + [False] * (losses_BN.shape[1] - n)
        assert losses_BN[row, :n].tolist() == pytest.approx([loss or 0.0 for loss in expected], rel=1e-9, abs=1e-12)
        assert not losses_BN[row, n:].any()


@given(lists=LISTS, gate=st.sampled_from([-math.inf, math.inf]))
@settings(max_examples=150, deadline=None)
def test_losses_bound_the_cost_in_ndcg_whatever_the_scores(lists, gate):
    losses_BN, _ = rspo_losses(padded(lists), RspoConfig(beta=CONFIG.beta, reference_gate=gate))
    for row, (log_p, log_ref, values) in enumerate(lists):
        use_ref = log_ref is not None and gate > 0.0
        scores = [p - log_ref[k] if use_ref else p for k, p in enumerate(log_p)]
        cost = rspo_loop.ndcg_cost(scores, values)
        assert all(loss >= c - 1e-12 for loss, c in zip(losses_BN[row].tolist(), cost, strict=False))


@given(lists=LISTS)
@settings(max_examples=60, deadline=None)
def test_a_rows_weights_sum_to_less_than_one(lists):
    batch = padded(lists)
    weights_BIJ, pairs_BIJ = lambda_weights(batch.values_BN, batch.mask_BN)
    assert (weights_BIJ.sum(-1) < 1.0).all()
    assert ((weights_BIJ > 0.0) == pairs_BIJ).all()


@pytest.mark.parametrize("losses", [rspo_losses, dpo_losses])
@pytest.mark.parametrize("with_reference", [True, False])
def test_gradients_are_those_of_the_formulas(losses, with_reference):
    generator = torch.Generator().manual_seed(3)
    lists = []
    for n in (1, 2, 5, 8):
        log_p, ref = (-10.0 * torch.rand(2, n, generator=generator, dtype=torch.float64)).tolist()
        values = torch.randint(0, 4, (n,), generator=generator).double().tolist()
        lists.append((log_p, ref if with_reference else None, values))
    lists.append(([-1.0, -2.0, -3.0], None, [2.0, 2.0, 2.0]))
    batch = padded(lists)

    def total(log_p_BN: torch.Tensor) -> torch.Tensor:
        found, _ = losses(
            RewardedLists(log_p_BN, batch.log_ref_BN, batch.has_ref_B, batch.values_BN, batch.mask_BN), CONFIG
        )
        return found.sum()

    analytic = torch.autograd.grad(total(batch.log_p_BN), batch.log_p_BN)[0]
    assert torch.isfinite(analytic).all()
    assert not analytic[~batch.mask_BN].any()
    point, step = batch.log_p_BN.detach(), 1e-5
    for row, column in batch.mask_BN.nonzero().tolist():
        moved = torch.zeros_like(point)
        moved[row, column] = step
        numeric = (total(point + moved) - total(point - moved)) / (2 * step)
        assert analytic[row, column].item() == pytest.approx(numeric.item(), rel=1e-5, abs=1e-9)


@given(lists=LISTS)
@settings(max_examples=100, deadline=None)
def test_dpo_equals_its_loop_form(lists):
    losses_B, paired_B = dpo_losses(padded(lists), CONFIG)
    for row, (log_p, log_ref, values) in enumerate(lists):
        expected = rspo_loop.dpo(log_p, log_ref, values, CONFIG.beta)
        assert bool(paired_B[row]) == (expected is not None)
        assert losses_B[row].item() == pytest.approx(expected or 0.0, rel=1e-9)


def test_the_gate_drops_a_reference_that_the_policy_has_left_behind():
    near = ([-1.0, -2.0], [-1.2, -2.1], [1.0, 0.0])
    far = ([-1.0, -2.0], [-3.2, -2.9], [1.0, 0.0])
    free = (far[0], None, far[2])
    losses_BN, _ = rspo_losses(padded([near, far, free]), CONFIG)
    assert losses_BN[1, 0] == losses_BN[2, 0]
    assert losses_BN[0, 0] != losses_BN[2, 0]


def test_a_step_down_the_gradient_lifts_the_better_ad():
    batch = padded([([-2.0, -1.0, -3.0], None, [5.0, 1.0, 0.0])])
    losses_BN, _ = rspo_losses(batch, CONFIG)
    gradient = torch.autograd.grad(losses_BN.sum(), batch.log_p_BN)[0][0]
    assert gradient[0] < 0.0 < gradient[2]


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_rewards_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="values: negative or not finite"):
        padded([([-1.0, -2.0], None, [1.0, bad])])


def test_a_beta_of_zero_is_refused():
    with pytest.raises(ValueError, match="beta: 0"):
        RspoConfig(beta=0)
