"""Named model shapes that stand without a training recipe; `learning.presets` has the ones that come with one."""

from __future__ import annotations

from gr4ad_core.model.config import LazyArConfig


def paper_preset(level_sizes: tuple[int, ...]) -> LazyArConfig:
    """Return the shape reported for serving on one accelerator: L = 9, K = 6, 0.16 B parameters (method.md §4)."""
    return LazyArConfig(
        level_sizes=level_sizes,
        d_model=1024,
        n_heads=16,
        n_layers=9,
        n_lazy=6,
        d_ff=2048,
        kv_groups=3,
        max_history=256,
        n_feature_buckets=1 << 14,
        n_ecpm_buckets=64,
    )
