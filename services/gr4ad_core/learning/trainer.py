"""Trains a policy from scratch by VSL (method.md §3.1): samples in, model and held-out figures out.

The same seed, data, configuration and number of threads give the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gr4ad_core.learning.held_out import held_out_metrics
from gr4ad_core.learning.sample_weight import sample_weights
from gr4ad_core.learning.sampling import TrainingSet
from gr4ad_core.learning.train_step import TrainStep
from gr4ad_core.learning.value_label import IMPRESSION, EcpmBuckets
from gr4ad_core.learning.vsl import VslConfig
from gr4ad_core.model.lazy_ar import LazyAr, LazyArConfig

REPORTS = 200
"""Points on the loss curve, and calls of `on_progress`, per run."""


@dataclass(frozen=True)
class Progress:
    """How far training is."""

    step: int
    """Steps done."""
    total_steps: int
    """Steps in all."""
    loss: float
    """Mean L_VSL since the last report."""


@dataclass(frozen=True)
class TrainedPolicy:
    """What training made."""

    model: LazyAr
    """In evaluation mode."""
    metrics: dict[str, float]
    """`held_out_…` figures (see `held_out_metrics`), `train_sid_loss` of the last epoch, `train_samples`, `steps`,
    `train_seconds` and `skipped_events`."""
    losses: list[tuple[int, float]]
    """Loss curve: steps done, mean L_VSL since the point before."""


class TrainingStoppedError(Exception):
    """`should_stop` asked for an end; there is no policy."""

    def __init__(self, step: int, total_steps: int) -> None:
        """Say how far training was."""
        super().__init__(f"training stopped on request after {step} of {total_steps} steps")
        self.step = step


def _epoch_samples(
    behaviors_M: NDArray[np.int64], impression_share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    drawn = (behaviors_M != IMPRESSION) | (rng.random(len(behaviors_M)) < impression_share)
    return np.flatnonzero(drawn)


def train_vsl(
    training_set: TrainingSet,
    model_config: LazyArConfig,
    config: VslConfig,
    seed: int,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    device: str = "cpu",
    threads: int | None = None,
) -> TrainedPolicy:
    """Train a new policy (method.md §3.1).

    The model gets as many value buckets as the value labels fill: one if they are all equal.

    Args:
        training_set: Samples; `validation_users` of them are held out to measure the policy.
        model_config: Shape of the model; `n_ecpm_buckets` is an upper bound.
        config: The recipe.
        seed: Of the weights, the order, dropout and the validation users.
        on_progress: Called about `REPORTS` times, from the calling thread.
        should_stop: Asked before every step.
        device: Where to train, `cpu` or `cuda`.
        threads: Threads torch computes with during the call; what it is set to by default.

    Raises:
        TrainingStoppedError: `should_stop` returned true.
        DivergedError: The loss is not finite.
        ValueError: No sample is left to train on, or values or weights are out of range.
    """
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        devices = [device] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            return _train(training_set, model_config, config, seed, on_progress, should_stop, device)
    finally:
        torch.set_num_threads(threads_before)


def _train(
    training_set: TrainingSet,
    model_config: LazyArConfig,
    config: VslConfig,
    seed: int,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    device: str,
) -> TrainedPolicy:
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    training, held_out = training_set.split_validation(config.validation_users, rng)
    buckets = EcpmBuckets.fit(training.value_micros_M, model_config.n_ecpm_buckets)
    model = LazyAr(replace(model_config, n_ecpm_buckets=len(buckets.means)))
    model.set_ecpm_buckets(torch.from_numpy(buckets.edges), torch.from_numpy(buckets.means))
    model.to(device).train()
    weights_M = torch.from_numpy(
        sample_weights(training, config.behavior_weights, config.user_value_exponent).astype(np.float32)
    ).to(device)
    bucket_M = model.ecpm_bucket(torch.from_numpy(training.value_micros_M).to(device))

    epochs = [_epoch_samples(training.behaviors_M, config.impression_share, rng) for _ in range(config.epochs)]
    total_steps = sum(-(-len(samples) // config.batch_size) for samples in epochs)
    if not total_steps:
        raise ValueError(
            f"impression_share: {config.impression_share}: leaves no sample of {len(training)}: "
            "raise it, or give clicks and conversions"
        )
    train_step = TrainStep(model, config, total_steps)
    report_every = max(1, total_steps // REPORTS)
    losses: list[tuple[int, float]] = []
    pending: list[torch.Tensor] = []
    sid_losses: list[torch.Tensor] = []
    for samples in epochs:
        sid_losses.clear()
        for batch_samples in training.epoch(config.batch_size, rng, samples):
            if should_stop():
                raise TrainingStoppedError(train_step.step, total_steps)
            as_new_B = rng.random(len(batch_samples)) < config.new_user_share
            batch = training.batch(batch_samples, model.config, as_new_B).to(device)
            rows = torch.from_numpy(batch_samples).to(device)
            metrics = train_step(batch, bucket_M[rows], weights_M[rows])
            pending.append(metrics["loss"])
            sid_losses.append(metrics["sid_loss"])
            if train_step.step % report_every == 0 or train_step.step == total_steps:
                losses.append((train_step.step, float(torch.stack(pending).mean())))
                pending.clear()
                on_progress(Progress(train_step.step, total_steps, losses[-1][1]))
    model.eval()
    return TrainedPolicy(
        model=model,
        metrics={
            **held_out_metrics(model, held_out, config),
            "train_sid_loss": float(torch.stack(sid_losses).mean()),
            "train_samples": float(len(training)),
            "skipped_events": float(training_set.skipped_events),
            "steps": float(total_steps),
            "train_seconds": time.monotonic() - started,
        },
        losses=losses,
    )
