"""One optimiser step: forward, loss, gradient, clipping, update, under a warm-up and cosine schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gr4ad_core.learning.sampling import Batch
from gr4ad_core.learning.vsl import VslConfig, vsl_loss
from gr4ad_core.model.lazy_ar import LazyAr


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""

    def __init__(self, step: int, loss: float, learning_rate: float) -> None:
        """Name the step, the loss and the remedy."""
        super().__init__(
            f"loss: {loss} at step {step}: training diverged, lower learning_rate (now {learning_rate:g}) "
            "or look for extreme values in the data"
        )


def rate_at(step: int, total_steps: int, config: VslConfig) -> float:
    """Return the learning rate of a step (from 0): a linear rise, then a cosine fall."""
    warmup = max(1, round(config.warmup_share * total_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_rate_share + (1.0 - config.final_rate_share) * cosine)


class TrainStep:
    """Updates a model in place, one mini-batch at a time."""

    def __init__(self, model: LazyAr, config: VslConfig, total_steps: int) -> None:
        """Make the optimiser.

        Args:
            model: Its weights are changed by every call.
            config: Rates, clipping and loss weights.
            total_steps: Length of the schedule.
        """
        self.model = model
        self.config = config
        self.total_steps = total_steps
        self.step = 0
        weights = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in weights if p.dim() >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),  # Rare tokens have rare gradients: a shorter memory of their size keeps steps bounded.
            fused=True,
        )

    def __call__(self, batch: Batch, ecpm_bucket_B: Tensor, weight_B: Tensor) -> dict[str, Tensor]:
        """Take one step.

        Args:
            batch: On the model's device.
            ecpm_bucket_B: Value bucket of each target, int64.
            weight_B: Sample weights w, float32.

        Returns:
            The metrics of `vsl_loss`, and `loss` itself.

        Raises:
            DivergedError: The loss is not finite; the weights are then those of the step before.
        """
        rate = rate_at(self.step, self.total_steps, self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        outputs = self.model.teacher_forced(batch.inputs, batch.sids_BT)
        loss, metrics = vsl_loss(outputs, batch.sids_BT, ecpm_bucket_B, weight_B, self.config)
        if not torch.isfinite(loss):
            raise DivergedError(self.step, loss.item(), rate)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self._optimizer.step()
        self.step += 1
        return {"loss": loss.detach(), **metrics}
