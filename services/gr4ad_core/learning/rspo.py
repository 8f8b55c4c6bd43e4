"""RSPO, ranking-guided softmax preference optimisation over lists (method.md §3.2).

    s_k^(i) = β · ( log p_θ(y_k|X) − C_i · log p_ref(y_k|X) )
    ℓ_i     = log2( 1 + Σ_{j∈E_i} M_ij · exp( s_j^(i) − s_i^(i) ) ),   E_i = { j : v_j < v_i }
    M_ij    = ( 1/D_|i−j| − 1/D_|i−j|+1 ) · | G_i − G_j |,   D_k = log2(1 + k),   G_i = v_i / IDCG

ℓ_i bounds from above what the pairs of item i cost in NDCG, whatever the scores. i and j are positions in the stable
order by falling reward.
Shapes: B lists, N items of the longest; rows i and columns j of a list as I and J, both N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True, kw_only=True)
class RspoConfig:
    """How strongly lists are preferred, and how far the reference is trusted."""

    beta: float = 1.0
    """β: how much a nat of likelihood counts. At 1 a pair stops to teach once it is a few nats apart in the right
    order; far smaller ones go on pulling apart what is in order already."""
    reference_gate: float = 2.0
    """δ: mean log p_θ/p_ref, in nats, from which on the policy has left the reference behind and it is not used."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: β is not positive.
        """
        if not self.beta > 0.0:
            raise ValueError(f"beta: {self.beta}: give a positive number")


@dataclass(frozen=True)
class RewardedLists:
    """A batch of lists, each item with its reward and its likelihoods; padded, no padding inside a list."""

    log_p_BN: Tensor
    """log p_θ(y|X) under the policy in training, with gradient."""
    log_ref_BN: Tensor
    """log p_ref(y|X) as logged when the list was served; any finite value where there is none."""
    has_ref_B: Tensor
    """Whether the list came with p_ref: lists of other pipelines have none."""
    values_BN: Tensor
    """Rewards v, at least 0."""
    mask_BN: Tensor
    """True at items, False in padding."""

    def __post_init__(self) -> None:
        """Check the rewards.

        Raises:
            ValueError: A reward is negative or not finite.
        """
        values = self.values_BN[self.mask_BN]
        if not bool((torch.isfinite(values) & (values >= 0.0)).all()):
            raise ValueError("values: negative or not finite: rewards are what was earned, give numbers of at least 0")


def ranks_by_value(values_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return each item's position, from 0, in the stable order by falling reward; padding comes last."""
    order_BN = values_BN.masked_fill(~mask_BN, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order_BN.argsort(dim=-1)


def lambda_weights(values_BN: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return M `[B, I, J]` and which pairs it is of, `j ∈ E_i`; M is 0 at all others.

    A row's weights sum to less than 1.
    """
    ranks_BN = ranks_by_value(values_BN, mask_BN)
    values_BN = values_BN.masked_fill(~mask_BN, 0.0)
    ideal_B = (values_BN / torch.log2(2.0 + ranks_BN.to(values_BN.dtype))).sum(-1)
    gains_BN = values_BN / ideal_B.clamp_min(torch.finfo(values_BN.dtype).tiny)[:, None]
    gap_BIJ = (ranks_BN[:, :, None] - ranks_BN[:, None, :]).abs().to(values_BN.dtype)
    pairs_BIJ = (values_BN[:, :, None] > values_BN[:, None, :]) & mask_BN[:, :, None] & mask_BN[:, None, :]
    discount_BIJ = 1.0 / torch.log2(1.0 + gap_BIJ.clamp_min(1.0)) - 1.0 / torch.log2(2.0 + gap_BIJ.clamp_min(1.0))
    weights_BIJ = discount_BIJ * (gains_BN[:, :, None] - gains_BN[:, None, :]).abs()
    return weights_BIJ * pairs_BIJ, pairs_BIJ


def rspo_losses(lists: RewardedLists, config: RspoConfig) -> tuple[Tensor, Tensor]:
    """Return ℓ_i of every item, `[B, N]`, and which items have one: those with a non-empty E_i.

    The loss of an item without a pair is 0. A list of one item, or of equal rewards, has no pair at all.

    Args:
        lists: The lists; the gradient flows into `log_p_BN` alone.
        config: β and δ.
    """
    weights_BIJ, pairs_BIJ = lambda_weights(lists.values_BN, lists.mask_BN)
    paired_BN = pairs_BIJ.any(-1)
    use_ref_BI = _reference_gate(lists, pairs_BIJ, config.reference_gate)

    log_p_BN, log_ref_BN = lists.log_p_BN, lists.log_ref_BN
    log_p_BIJ = log_p_BN[:, None, :] - log_p_BN[:, :, None]
    log_ref_BIJ = log_ref_BN[:, None, :] - log_ref_BN[:, :, None]
    score_BIJ = config.beta * (log_p_BIJ - use_ref_BI[..., None] * log_ref_BIJ)
    # Rows without a pair are kept out of the logarithm of an empty sum, whose gradient is not a number.
    chosen_BIJ = pairs_BIJ | ~paired_BN[..., None]
    exponent_BIJ = (weights_BIJ.masked_fill(~pairs_BIJ, 1.0).log() + score_BIJ).masked_fill(~chosen_BIJ, -torch.inf)
    losses_BN = softplus(exponent_BIJ.logsumexp(-1)) / math.log(2.0)
    return losses_BN.masked_fill(~paired_BN, 0.0), paired_BN


def _reference_gate(lists: RewardedLists, pairs_BIJ: Tensor, limit: float) -> Tensor:
    """Return C `[B, I]`: 1 where the mean of log p_θ/p_ref over E_i ∪ {i} is below the limit, a switch for the row."""
    with torch.no_grad():
        ratio_BN = (lists.log_p_BN - lists.log_ref_BN).masked_fill(~lists.mask_BN, 0.0)
        sum_BI = (pairs_BIJ * ratio_BN[:, None, :]).sum(-1) + ratio_BN
        mean_BI = sum_BI / (pairs_BIJ.sum(-1) + 1)
        return ((mean_BI < limit) & lists.has_ref_B[:, None]).to(ratio_BN.dtype)


def dpo_losses(lists: RewardedLists, config: RspoConfig) -> tuple[Tensor, Tensor]:
    """Return the DPO loss of every list, its best item against its worst, `[B]`, and which lists have one.

    `−log2 σ( β · ( log p_θ/p_ref of the best − of the worst ) )`, without p_ref where none was logged: the foil of RSPO
    (method.md §3.4), in the same unit. Of equal rewards the first item counts as the best, the last as the worst.
    """
    ranks_BN = ranks_by_value(lists.values_BN, lists.mask_BN)
    last_B = lists.mask_BN.sum(-1) - 1
    best_B1 = (ranks_BN == 0).to(torch.int64).argmax(-1, keepdim=True)
    worst_B1 = (ranks_BN == last_B[:, None]).to(torch.int64).argmax(-1, keepdim=True)

    def difference(of_BN: Tensor) -> Tensor:
        return (of_BN.gather(-1, best_B1) - of_BN.gather(-1, worst_B1))[:, 0]

    paired_B = (last_B > 0) & (difference(lists.values_BN) > 0.0)
    margin_B = difference(lists.log_p_BN) - lists.has_ref_B * difference(lists.log_ref_BN)
    losses_B = softplus(-config.beta * margin_B) / math.log(2.0)
    return losses_B.masked_fill(~paired_B, 0.0), paired_B
