"""Random models, histories and catalogues, small enough for the oracles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from gr4ad_core.model.config import LazyArConfig
from gr4ad_core.model.history import UserHistory
from gr4ad_core.model.lazy_ar import LazyAr

THREE_LEVELS = LazyArConfig(
    level_sizes=(7, 5, 6),
    d_model=16,
    n_heads=2,
    n_layers=3,
    n_lazy=2,
    d_ff=24,
    kv_groups=2,
    max_history=6,
    n_feature_buckets=11,
    n_ecpm_buckets=5,
)
"""K = 2L/3 with two groups of keys and values."""

CONFIGS = {
    "lazy": THREE_LEVELS,
    "ordinary": replace(THREE_LEVELS, n_lazy=0),
    "one_parallel_layer": replace(THREE_LEVELS, n_lazy=1, kv_groups=3, tied_heads=True),
    "two_levels_item_hash": replace(THREE_LEVELS, level_sizes=(4, 9), n_item_buckets=13),
    "four_levels": replace(THREE_LEVELS, level_sizes=(3, 4, 3, 5), n_layers=4, n_lazy=2, n_heads=4),
}
"""One of each kind of decoder."""


def random_model(config: LazyArConfig, seed: int = 0) -> LazyAr:
    """A model in eval mode whose every weight is away from its initial value, so that no term is a silent zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LazyAr(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "norm" in name else 0.6 if parameter.dim() < 2 or "table" in name or "head" in name else 0.0
            if spread:
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.3 * parameter.shape[-1] ** -0.5)
        means = 1e6 * torch.rand(config.n_ecpm_buckets, generator=generator).cumsum(0)
        model.set_ecpm_buckets(means[1:], means)
    return model


def random_history(config: LazyArConfig, n_events: int, rng: np.random.Generator) -> UserHistory:
    """Events with some unknown times and some features."""
    times = 1e9 + rng.integers(0, 10**7, n_events).astype(np.float64)
    times[rng.random(n_events) < 0.2] = np.nan
    return UserHistory(
        sids=np.stack([rng.integers(0, size, n_events) for size in config.level_sizes], axis=1),
        behaviors=rng.integers(1, 4, n_events),
        event_times=np.sort(times),
        request_time=1.01e9,
        features={f"name{i}": f"value{rng.integers(9)}" for i in range(int(rng.integers(0, 3)))},
    )


def random_sids(config: LazyArConfig, n: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct SIDs, uniform over the code space."""
    flat = rng.choice(int(np.prod(config.level_sizes)), size=n, replace=False)
    return np.stack(np.unravel_index(flat, config.level_sizes), axis=1)
