"""What a run trains and how: a named preset, with the caller's number of epochs."""

from __future__ import annotations

from dataclasses import replace

from gr4ad_core.learning.presets import PRESETS, training_preset
from gr4ad_core.learning.vsl import VslConfig
from gr4ad_core.model.config import LazyArConfig
from gr4ad_runtime.errors import InvalidArgumentError

DEFAULT_PRESET = "default"


def check_preset(name: str) -> None:
    """Refuse a preset that does not exist; an empty name is the default one.

    Raises:
        InvalidArgumentError: There is no such preset.
    """
    if name and name not in PRESETS:
        raise InvalidArgumentError("preset", repr(name), f"choose one of {', '.join(PRESETS)}, or leave it empty")


def make_recipe(preset: str, epochs: int, level_sizes: tuple[int, ...]) -> tuple[LazyArConfig, VslConfig]:
    """Return the shape of the model and the configuration of its training.

    Args:
        preset: Name of the preset; empty for the default one.
        epochs: Passes over the data; 0 for the preset's.
        level_sizes: Of the codebook whose SIDs the model writes.
    """
    model_config, config = training_preset(preset or DEFAULT_PRESET, level_sizes)
    return model_config, replace(config, epochs=epochs) if epochs else config
