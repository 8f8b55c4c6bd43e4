"""The objective of learning from what was shown: VSL and RSPO on the same lists, balanced per item (method.md §3.3).

    L = mean_i[ w_VSL · L_VSL(i) + w_RL · ℓ_i ]

An ad that was shown without any response is nothing to imitate: it has no VSL term, and counts in the mean. With DPO in
place of RSPO, its foil (§3.4), the second part is the mean of the lists' losses: their pairs have no item to balance.
Shapes: B lists, N items of the longest, M items of all lists, T SID levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gr4ad_core.learning.list_balance import balance_weights
from gr4ad_core.learning.rspo import RewardedLists, RspoConfig, dpo_losses, rspo_losses
from gr4ad_core.learning.vsl import VslConfig, sample_losses
from gr4ad_core.model.context import ContextInputs
from gr4ad_core.model.lazy_ar import LazyAr

Preference = Literal["rspo", "dpo"]
"""What moves the policy towards the order by reward."""


@dataclass(frozen=True)
class ShownLists:
    """A mini-batch of lists as they were returned, with what came of them; padded, no padding inside a list."""

    inputs: ContextInputs
    """The B histories."""
    sids_BNT: Tensor
    """SIDs, int64; 0 in padding."""
    log_ref_BN: Tensor
    """log p_ref(y|X) as logged when the list was served; 0 where there is none."""
    has_ref_B: Tensor
    """Whether the list came with p_ref."""
    value_micros_BN: Tensor
    """Rewards v: what each item earned or is expected to earn if shown, in micros per mille; 0 in padding."""
    response_micros_BN: Tensor
    """What the response to each item was worth, in micros per mille; 0 at items without one, and in padding."""
    mask_BN: Tensor
    """True at items, False in padding."""


def list_loss(
    model: LazyAr, lists: ShownLists, vsl: VslConfig, rspo: RspoConfig, preference: Preference = "rspo"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the objective of a mini-batch.

    Args:
        model: The policy in training.
        lists: What was shown; at least one item.
        vsl: Gives λ_e, λ_mtp and the smoothing of the last level.
        rspo: β and δ.
        preference: RSPO, or DPO as its foil.

    Returns:
        The loss, and without gradient: `vsl_loss`, the mean L_VSL of items with a response; `preference_loss`, the mean
        over items (of DPO: lists) with a pair; `unpaired_lists`, lists that taught no preference; `log_ratio`, the mean
        log p_θ/p_ref over items of lists that came with p_ref, 0 without any: how far the policy has drifted.
    """
    mask_BN = lists.mask_BN
    sids_MT = lists.sids_BNT[mask_BN]
    outputs = model.teacher_forced_lists(lists.inputs, lists.sids_BNT, mask_BN)
    log_p_M = torch.zeros_like(outputs.ecpm_logits[:, 0])
    for level, logits_MV in enumerate(outputs.level_logits):
        log_p_M = log_p_M + logits_MV.log_softmax(-1).gather(-1, sids_MT[:, level, None])[:, 0]
    log_p_BN = torch.zeros_like(lists.log_ref_BN, dtype=log_p_M.dtype).masked_scatter(mask_BN, log_p_M)

    response_M = lists.response_micros_BN[mask_BN]
    bucket_M = model.ecpm_bucket(response_M)
    sid_loss_M, ecpm_loss_M, mtp_loss_M = sample_losses(outputs, sids_MT, bucket_M, vsl)
    vsl_M = sid_loss_M + vsl.ecpm_loss_weight * ecpm_loss_M
    if mtp_loss_M is not None:
        vsl_M = vsl_M + vsl.mtp_loss_weight * mtp_loss_M
    values_BN = lists.value_micros_BN.to(log_p_M.dtype)
    rewarded = RewardedLists(log_p_BN, lists.log_ref_BN.to(log_p_M.dtype), lists.has_ref_B, values_BN, mask_BN)
    imitate_BN, explore_BN = balance_weights(log_p_BN.detach(), values_BN, mask_BN)
    responded_M = response_M > 0.0
    loss = (imitate_BN[mask_BN] * responded_M * vsl_M).mean()
    if preference == "rspo":
        losses, paired = rspo_losses(rewarded, rspo)
        loss = loss + (explore_BN * losses)[mask_BN].mean()
        unpaired = ~paired.any(-1)
    else:
        losses, paired = dpo_losses(rewarded, rspo)
        loss = loss + losses.mean()
        unpaired = ~paired
    with torch.no_grad():
        ratio_BN = (log_p_BN - rewarded.log_ref_BN)[mask_BN & lists.has_ref_B[:, None]]
        metrics = {
            "vsl_loss": vsl_M[responded_M].sum() / responded_M.sum().clamp_min(1),
            "preference_loss": losses.sum() / paired.sum().clamp_min(1),
            "unpaired_lists": unpaired.sum(),
            "log_ratio": ratio_BN.sum() / max(1, ratio_BN.numel()),
        }
    return loss, metrics
