"""Named recipes: a model and how to train it, each measured (PAPER.md quotes the figures)."""

from __future__ import annotations

from collections.abc import Callable

from gr4ad_core.learning.vsl import VslConfig
from gr4ad_core.model.config import LazyArConfig


def tiny(level_sizes: tuple[int, ...]) -> tuple[LazyArConfig, VslConfig]:
    """Return a recipe for tests: seconds on one core."""
    model = LazyArConfig(
        level_sizes=level_sizes,
        d_model=32,
        n_heads=2,
        n_layers=3,
        n_lazy=2,
        d_ff=64,
        kv_groups=1,
        max_history=10,
        n_feature_buckets=64,
        n_ecpm_buckets=4,
        dropout=0.0,
    )
    return model, VslConfig(epochs=3, batch_size=64, learning_rate=5e-3, validation_users=64, validation_beams=(8, 16))


def demo(level_sizes: tuple[int, ...]) -> tuple[LazyArConfig, VslConfig]:
    """Return the demo's recipe: some thousand ads, some ten thousand events, to be trained while one watches."""
    model = LazyArConfig(
        level_sizes=level_sizes,
        d_model=64,
        n_heads=4,
        n_layers=6,
        n_lazy=5,
        d_ff=128,
        kv_groups=2,
        max_history=20,
        n_item_buckets=1 << 13,
        n_feature_buckets=1024,
        n_ecpm_buckets=16,
        dropout=0.2,
        tied_heads=True,
    )
    # Half of the demo's events are impressions without a response: a tenth of them is enough to know what is shown.
    return model, VslConfig(epochs=4, batch_size=256, learning_rate=3e-3, impression_share=0.1)


def default(level_sizes: tuple[int, ...]) -> tuple[LazyArConfig, VslConfig]:
    """Return the recipe for data of the size of Amazon Beauty (12,101 ads, 131,413 samples)."""
    model = LazyArConfig(
        level_sizes=level_sizes,
        d_model=96,
        n_heads=4,
        n_layers=6,
        n_lazy=5,
        d_ff=192,
        kv_groups=2,
        max_history=20,
        n_item_buckets=1 << 15,
        n_feature_buckets=1024,
        n_ecpm_buckets=16,
        dropout=0.2,
        tied_heads=True,
    )
    return model, VslConfig(epochs=6, batch_size=512, learning_rate=3e-3)


PRESETS: dict[str, Callable[[tuple[int, ...]], tuple[LazyArConfig, VslConfig]]] = {
    "tiny": tiny,
    "demo": demo,
    "default": default,
}


def training_preset(name: str, level_sizes: tuple[int, ...]) -> tuple[LazyArConfig, VslConfig]:
    """Return the model and the recipe of a preset.

    Args:
        name: `tiny`, `demo` or `default`.
        level_sizes: Of the codebook whose SIDs the model writes.

    Raises:
        ValueError: There is no preset of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: {name}: give one of {', '.join(PRESETS)}")
    return PRESETS[name](level_sizes)
