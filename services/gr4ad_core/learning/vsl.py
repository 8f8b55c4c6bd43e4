"""VSL, value-aware supervised learning (method.md §3.1).

    L_SID  = −Σ_t log p(s_t | s_<t, X)
    L_eCPM = −log p(v | y, X)
    L_NTP  = L_SID + λ_e L_eCPM
    L_VSL  = E[ w · L_NTP + λ_mtp · L_MTP ]

L_MTP is L_NTP read straight from the trunk, for training only; there is none at K = 0.
Shapes: B samples, T SID levels, V codes of a level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gr4ad_core.model.lazy_ar import TokenOutputs


@dataclass(frozen=True, kw_only=True)
class VslConfig:
    """How a policy is trained by VSL."""

    epochs: int = 12
    """Passes over the samples."""
    batch_size: int = 512
    """Samples per step."""
    learning_rate: float = 3e-3
    """Peak rate of AdamW."""
    warmup_share: float = 0.05
    """Share of the steps in which the rate rises from 0; from there it falls to `final_rate_share` along a cosine."""
    final_rate_share: float = 0.02
    """Last learning rate as a share of the peak."""
    weight_decay: float = 0.05
    """Decay of matrices and embeddings, not of biases, norms and positions."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all weights together."""
    business_smoothing: float = 0.2
    """Share of the last token's target spread over its level. A business code says whose ad it is and what for: a new
    campaign's may be one that training never met beside these semantic codes, and must stay within the beams' reach."""
    ecpm_loss_weight: float = 0.1
    """λ_e. Small: the value bucket has one token of four, and reaches the ranking after the search only."""
    mtp_loss_weight: float = 0.3
    """λ_mtp. The trunk serves the decoder first; its own prediction is a guide."""
    behavior_weights: tuple[float, float, float] = (0.1, 0.5, 1.0)
    """w_behavior of an impression, a click and a conversion. An impression says more of the policy that chose it than
    of the user, hence a tenth of a conversion."""
    user_value_exponent: float = 0.5
    """How strongly w_user follows the value of the user's average event; 0 weighs users alike."""
    impression_share: float = 1.0
    """Share of the impressions drawn, anew in each epoch; what is left out is not made up for."""
    new_user_share: float = 0.02
    """Share of the samples shown without their history, so that the policy knows what to give to a new user."""
    validation_users: int = 512
    """Users whose last event is held out of training to measure the policy; at most a tenth of the samples."""
    validation_beams: tuple[int, ...] = (32, 64, 128)
    """Beam widths per level of the measured search; the last one is used for levels beyond."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A field is out of its range.
        """
        for name in ("epochs", "batch_size", "learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)}: give a positive number")
        for name in ("ecpm_loss_weight", "mtp_loss_weight", "weight_decay", "user_value_exponent", "validation_users"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)}: give 0 to switch it off, or a positive number")
        for name in ("warmup_share", "final_rate_share", "business_smoothing", "impression_share", "new_user_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: {getattr(self, name)}: give a share from 0 to 1")
        if len(self.behavior_weights) != 3 or min(self.behavior_weights) < 0.0:
            raise ValueError(f"behavior_weights: {self.behavior_weights}: give three weights of at least 0")
        if not self.validation_beams or min(self.validation_beams) < 1:
            raise ValueError(f"validation_beams: {self.validation_beams}: give positive widths")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def token_loss(
    level_logits: list[Tensor], ecpm_logits: Tensor, sids_BT: Tensor, ecpm_bucket_B: Tensor, business_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return L_SID and L_eCPM of each sample, `[B]` each."""
    sid_loss_B = torch.zeros_like(ecpm_logits[:, 0])
    for level, logits_BV in enumerate(level_logits):
        smoothing = business_smoothing if level == len(level_logits) - 1 else 0.0
        sid_loss_B = sid_loss_B + cross_entropy(
            logits_BV, sids_BT[:, level], reduction="none", label_smoothing=smoothing
        )
    return sid_loss_B, cross_entropy(ecpm_logits, ecpm_bucket_B, reduction="none")


def sample_losses(
    outputs: TokenOutputs, sids_BT: Tensor, ecpm_bucket_B: Tensor, config: VslConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return L_SID, L_eCPM and L_MTP of each sample, `[B]` each; no L_MTP without a lazy trunk or at λ_mtp = 0."""
    smoothing = config.business_smoothing
    sid_loss_B, ecpm_loss_B = token_loss(outputs.level_logits, outputs.ecpm_logits, sids_BT, ecpm_bucket_B, smoothing)
    if outputs.mtp_ecpm_logits is None or not config.mtp_loss_weight > 0.0:
        return sid_loss_B, ecpm_loss_B, None
    mtp_sid_B, mtp_ecpm_B = token_loss(
        outputs.mtp_level_logits, outputs.mtp_ecpm_logits, sids_BT, ecpm_bucket_B, smoothing
    )
    return sid_loss_B, ecpm_loss_B, mtp_sid_B + config.ecpm_loss_weight * mtp_ecpm_B


def vsl_loss(
    outputs: TokenOutputs, sids_BT: Tensor, ecpm_bucket_B: Tensor, weight_B: Tensor, config: VslConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute L_VSL (method.md §3.1).

    Args:
        outputs: Of `LazyAr.teacher_forced` on the same samples.
        sids_BT: Target SIDs, int64.
        ecpm_bucket_B: Value bucket of each target, int64.
        weight_B: Sample weights w.
        config: Gives λ_e, λ_mtp and the smoothing of the last level.

    Returns:
        The loss, and its unweighted parts, means over the batch without gradient.
    """
    sid_loss_B, ecpm_loss_B, mtp_loss_B = sample_losses(outputs, sids_BT, ecpm_bucket_B, config)
    loss = (weight_B * (sid_loss_B + config.ecpm_loss_weight * ecpm_loss_B)).mean()
    metrics = {"sid_loss": sid_loss_B.mean().detach(), "ecpm_loss": ecpm_loss_B.mean().detach()}
    if mtp_loss_B is not None:
        mtp_loss = mtp_loss_B.mean()
        loss = loss + config.mtp_loss_weight * mtp_loss
        metrics["mtp_loss"] = mtp_loss.detach()
    return loss, metrics
