"""Sample weights: behaviours rank as they should, users stay within bounds, the mean is one."""

from __future__ import annotations

import numpy as np
import pytest
from gr4ad_core.learning.sample_weight import MAX_USER_FACTOR, sample_weights, user_weights
from gr4ad_core.learning.vsl import VslConfig


def test_conversion_outweighs_click_outweighs_impression_and_the_mean_is_one(training_set):
    weights = sample_weights(training_set, VslConfig().behavior_weights, user_exponent=0.0)
    impression, click, conversion = (np.unique(weights[training_set.behaviors_M == b]) for b in (1, 2, 3))
    assert len(impression) == len(click) == len(conversion) == 1
    assert conversion[0] > click[0] > impression[0] > 0
    assert click[0] / conversion[0] == pytest.approx(0.5)
    assert weights.mean() == pytest.approx(1.0)


def test_valuable_users_weigh_more_within_bounds():
    users = np.repeat(np.arange(10), 50)
    values = np.repeat([0.0] * 9 + [1e9], 50)
    weights = user_weights(users, values, 0.5)
    assert weights[0] < weights[-1] == MAX_USER_FACTOR
    assert weights[0] == 1.0 / MAX_USER_FACTOR
    assert len(np.unique(weights[:50])) == 1


def test_number_of_events_does_not_change_a_users_weight():
    weights = user_weights(np.repeat([0, 1], [3, 300]), np.full(303, 5.0), 1.0)
    np.testing.assert_allclose(weights, 1.0)


def test_worthless_data_weigh_users_alike():
    np.testing.assert_array_equal(user_weights(np.arange(4), np.zeros(4), 0.5), np.ones(4))


def test_weights_that_leave_nothing_are_refused(training_set):
    with pytest.raises(ValueError, match=r"behavior_weights: .*weigh a behaviour that occurs"):
        sample_weights(training_set, (0.0, 0.0, 0.0), 0.5)
