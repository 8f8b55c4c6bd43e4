"""How much a sample counts: `w = w_user · w_behavior` (method.md §3.1).

Shapes: M samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gr4ad_core.learning.sampling import TrainingSet

MAX_USER_FACTOR = 2.0  # Few users carry most of the value: unbounded, they would drown the gradient of all others.


def user_weights(
    users_M: NDArray[np.int64], value_micros_M: NDArray[np.float64], exponent: float
) -> NDArray[np.float64]:
    """Weigh users by the value of an average event of theirs.

    The number of a user's events does not enter: it already multiplies his samples.

    Args:
        users_M: Whose sample it is.
        value_micros_M: Value labels.
        exponent: 0 treats all users alike, 1 is proportional to value.

    Returns:
        Weights from `1 / MAX_USER_FACTOR` to `MAX_USER_FACTOR`, 1 for the mean value.
    """
    overall = value_micros_M.mean()
    if exponent == 0.0 or overall <= 0.0:
        return np.ones(len(users_M))
    _, user_M = np.unique(users_M, return_inverse=True)
    # One event of average value in addition keeps users with a single sample near 1.
    value = (np.bincount(user_M, weights=value_micros_M) + overall) / (np.bincount(user_M) + 1)
    factor = np.clip((value / overall) ** exponent, 1.0 / MAX_USER_FACTOR, MAX_USER_FACTOR)
    weights: NDArray[np.float64] = factor[user_M]
    return weights


def sample_weights(
    training_set: TrainingSet, behavior_weights: tuple[float, float, float], user_exponent: float
) -> NDArray[np.float64]:
    """Return w of every sample, scaled to a mean of 1 so that the learning rate keeps its meaning.

    Args:
        training_set: The samples.
        behavior_weights: Weights of an impression, a click and a conversion, rising.
        user_exponent: See `user_weights`.

    Raises:
        ValueError: All samples weigh nothing.
    """
    weights = np.array(behavior_weights)[training_set.behaviors_M - 1]
    weights = weights * user_weights(training_set.users_M, training_set.value_micros_M, user_exponent)
    if not weights.sum() > 0.0:
        raise ValueError(
            f"behavior_weights: {behavior_weights}: no sample has a positive weight: weigh a behaviour that occurs"
        )
    scaled: NDArray[np.float64] = weights / weights.mean()
    return scaled
