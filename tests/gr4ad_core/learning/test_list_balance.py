"""The weights between imitation and exploration against their loop form."""

from __future__ import annotations

import pytest
import torch
from gr4ad_core.learning.list_balance import balance_weights, disagreement
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gr4ad_core.learning.test_rspo import LISTS, padded
from tests.oracles import rspo_loop


@given(lists=LISTS)
@settings(max_examples=150, deadline=None)
def test_weights_equal_their_loop_form(lists):
    batch = padded(lists)
    imitate_BN, explore_BN = balance_weights(batch.log_p_BN, batch.values_BN, batch.mask_BN)
    expected = rspo_loop.balance([(log_p, values) for log_p, _, values in lists])
    for found_BN, rows in zip((imitate_BN, explore_BN), expected, strict=True):
        for row, weights in enumerate(rows):
            assert found_BN[row, : len(weights)].tolist() == pytest.approx(weights, rel=1e-9, abs=1e-12)
            assert not found_BN[row, len(weights) :].any()
    assert not imitate_BN.requires_grad


@given(scale=st.floats(1e-3, 1e9))
@settings(max_examples=20, deadline=None)
def test_the_unit_of_the_rewards_does_not_matter(scale):
    batch = padded([([-1.0, -5.0, -2.0], None, [1.0, 2.5, 0.0]), ([-3.0, -1.0], None, [1.0, 1.0])])
    weights = balance_weights(batch.log_p_BN, batch.values_BN, batch.mask_BN)
    scaled = balance_weights(batch.log_p_BN, batch.values_BN * scale, batch.mask_BN)
    for one, other in zip(weights, scaled, strict=True):
        torch.testing.assert_close(one, other)


def test_an_ideal_ranking_explores_and_a_reversed_one_imitates():
    batch = padded([([-1.0, -2.0, -3.0], None, [3.0, 2.0, 1.0]), ([-3.0, -2.0, -1.0], None, [3.0, 2.0, 1.0])])
    apart_BN = disagreement(batch.log_p_BN, batch.values_BN, batch.mask_BN)
    assert apart_BN[:, :3].tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    imitate_BN, explore_BN = balance_weights(batch.log_p_BN, batch.values_BN, batch.mask_BN)
    assert imitate_BN[1, 0] > imitate_BN[0, 0]
    assert explore_BN[1, 0] == 0.0 < explore_BN[0, 0]


def test_a_list_of_one_item_is_imitated_only():
    batch = padded([([-1.0], None, [3.0]), ([-1.0, -2.0], None, [1.0, 0.0])])
    imitate_BN, explore_BN = balance_weights(batch.log_p_BN, batch.values_BN, batch.mask_BN)
    assert imitate_BN[0, 0] > 0.0
    assert explore_BN[0, 0] == 0.0
