"""Named model shapes (method.md §2.2); each takes the codebook's level sizes."""

from __future__ import annotations

from gr4ad_core.model.config import LazyArConfig


def tiny_preset(level_sizes: tuple[int, ...]) -> LazyArConfig:
    """Return a model for tests: trains in seconds and still has a trunk and an autoregressive part."""
    return LazyArConfig(
        level_sizes=level_sizes, d_model=32, n_heads=2, n_layers=3, n_lazy=2, d_ff=64, max_history=16, dropout=0.0
    )


def demo_preset(level_sizes: tuple[int, ...]) -> LazyArConfig:
    """Return a model that trains in minutes and serves in milliseconds on two CPU cores; K = 2L/3."""
    return LazyArConfig(level_sizes=level_sizes, d_model=128, n_heads=4, n_layers=6, n_lazy=4, d_ff=256, max_history=20)


def default_preset(level_sizes: tuple[int, ...]) -> LazyArConfig:
    """Return a model for a data set of the size of Amazon Beauty, trained on two CPU cores; K = 2L/3."""
    return LazyArConfig(
        level_sizes=level_sizes,
        d_model=128,
        n_heads=4,
        n_layers=6,
        n_lazy=4,
        d_ff=384,
        max_history=20,
        n_item_buckets=1 << 15,
        dropout=0.2,
    )


def paper_preset(level_sizes: tuple[int, ...]) -> LazyArConfig:
    """Return the shape the paper reports for serving on one accelerator: L = 9, K = 6, about 0.16 B parameters."""
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
