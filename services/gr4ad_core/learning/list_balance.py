"""How much a listed ad is imitated and how much it is explored: the weights that unify VSL and RSPO (method.md §3.3).

    A_i   = |r_p − r_v| / (n − 1)
    w_VSL = w_0 · exp( A_i · log(1 + v_i) )
    w_RL  = w_0 · Z · (1 − A_i)

Far from the ideal ranking the policy imitates what was valuable; close to it, it optimises its preferences.
Shapes: B lists, N items of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(scores_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return the rank of each item by falling score, from 0, tied ranks averaged; 0 in padding."""
    others_BNN = mask_BN[:, None, :] & mask_BN[:, :, None]
    above_BN = ((scores_BN[:, None, :] > scores_BN[:, :, None]) & others_BNN).sum(-1)
    tied_BN = ((scores_BN[:, None, :] == scores_BN[:, :, None]) & others_BNN).sum(-1)  # the item itself included
    return (above_BN.to(scores_BN.dtype) + (tied_BN - 1).clamp_min(0).to(scores_BN.dtype) / 2.0) * mask_BN


def disagreement(log_p_BN: Tensor, values_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return A `[B, N]`: how far apart an item's ranks by likelihood and by reward are, 0 to 1; 0 where n < 2."""
    apart_BN = (average_ranks(log_p_BN, mask_BN) - average_ranks(values_BN, mask_BN)).abs()
    return apart_BN / (mask_BN.sum(-1, keepdim=True) - 1).clamp_min(1)


@torch.no_grad()
def balance_weights(log_p_BN: Tensor, values_BN: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return w_VSL and w_RL of every item, `[B, N]` each; 0 in padding.

    Both are scaled to a mean of 1 over the batch, w_RL over the items of lists of two and more, which alone have one:
    the learning rate keeps its meaning, and so does the balance of the two from item to item.

    Args:
        log_p_BN: Likelihoods under the policy in training.
        values_BN: Rewards, at least 0, in any unit: they count in units of the batch's mean.
        mask_BN: True at items.
    """
    values_BN = values_BN.masked_fill(~mask_BN, 0.0)
    relative_BN = _of_mean_one(values_BN, mask_BN)
    disagreement_BN = disagreement(log_p_BN, values_BN, mask_BN)
    imitate_BN = torch.exp(disagreement_BN * torch.log1p(relative_BN)) * mask_BN
    listed_BN = mask_BN & (mask_BN.sum(-1, keepdim=True) > 1)
    explore_BN = (1.0 - disagreement_BN) * listed_BN
    return _of_mean_one(imitate_BN, mask_BN), _of_mean_one(explore_BN, listed_BN)


def _of_mean_one(weights_BN: Tensor, items_BN: Tensor) -> Tensor:
    """Scale weights to a mean of 1 over the items; they stay as they are where all are 0."""
    total = weights_BN.sum()
    return weights_BN * torch.where(total > 0.0, items_BN.sum() / total, 1.0)
